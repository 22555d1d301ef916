-- Who may read: the managed identity of the function app, the schema retention, and nothing more. Once, after the views
-- are there, by an Entra administrator of the server, in the shop's own database (not in master):
--
--   sqlcmd -S <server>.database.windows.net -d <database> -G -v identity="<identityName>" -i sql/grants.sql
--
-- <identityName> is an output of the deployment. sqlcmd puts it in the place of $(identity). Once more does no harm.
--
-- SELECT on the schema shows the views' columns in INFORMATION_SCHEMA too. Nothing else is needed: Microsoft's pages ask
-- for no permission for MIN_ACTIVE_ROWVERSION(), @@DBTS, DB_NAME(), SERVERPROPERTY() and DATABASEPROPERTYEX(), so there
-- is no VIEW DATABASE STATE here, and no VIEW DEFINITION.
-- The tables below the views need no grant where one user owns both schemas: SQL Server then asks only for the view.

IF DATABASE_PRINCIPAL_ID(N'$(identity)') IS NULL
    CREATE USER [$(identity)] FROM EXTERNAL PROVIDER;
GO

GRANT SELECT ON SCHEMA::retention TO [$(identity)];
GO
