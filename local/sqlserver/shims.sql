-- T-SQL functions that DuckDB lacks, as DuckDB macros, and the memory of T-SQL types; run once in every database.
-- Errors raised here carry their SQL Server number in double brackets; errors.py reads it back.
CREATE SCHEMA ms;
CREATE SCHEMA dbo;
CREATE SEQUENCE ms.row_version START 2001;
CREATE TABLE ms.objects (object_id INTEGER, schema_name VARCHAR, name VARCHAR, kind VARCHAR, definition VARCHAR, clock BOOLEAN);
CREATE TABLE ms.columns (schema_name VARCHAR, table_name VARCHAR, name VARCHAR, position INTEGER, type VARCHAR,
    length INTEGER, "precision" INTEGER, scale INTEGER, nullable BOOLEAN, default_sql VARCHAR, sequence VARCHAR, computed VARCHAR);
CREATE SEQUENCE ms.object_id START 100000;

CREATE MACRO ms.rv(n) AS unhex(lpad(to_hex(n), 16, '0'));
CREATE MACRO ms.divide(a, b) AS CASE WHEN b = 0 THEN error('[[8134]]Divide by zero error encountered.') ELSE a / b END;
CREATE MACRO ms.int_divide(a, b) AS CASE WHEN b = 0 THEN error('[[8134]]Divide by zero error encountered.')
    WHEN (a < 0) <> (b < 0) THEN -(abs(a) // abs(b)) ELSE abs(a) // abs(b) END;
CREATE MACRO ms.modulo(a, b) AS CASE WHEN b = 0 THEN error('[[8134]]Divide by zero error encountered.') ELSE a % b END;
CREATE MACRO ms.datediff_int(n) AS CASE WHEN abs(n) > 2147483647
    THEN error('[[535]]The datediff function resulted in an overflow.') ELSE n END;
CREATE MACRO ms.fit(x, n, col) AS CASE WHEN length(rtrim(x, ' ')) > n
    THEN error('[[2628]]String or binary data would be truncated in column ''' || col || '''. Truncated value: ''' || x[:100] || '''.')
    ELSE x[:n] END;
CREATE MACRO ms.fit_bytes(x, n, col) AS CASE WHEN octet_length(x) > n
    THEN error('[[2628]]String or binary data would be truncated in column ''' || col || '''.') ELSE x END;
CREATE MACRO ms.pad(x, n) AS rpad(x, n, ' ');
CREATE MACRO ms.bytes(x, n) AS unhex(left(hex(x), 2 * n));
CREATE MACRO ms.pad_bytes(x, n) AS unhex(rpad(left(hex(x), 2 * n), 2 * n, '0'));
CREATE MACRO ms.int_bytes(x, n) AS unhex(right(lpad(to_hex(x), 2 * n, '0'), 2 * n));
CREATE MACRO ms.bytes_int(x) AS CAST(CAST(unhex(lpad(right(hex(x), 16), 16, '0')) AS BIT) AS BIGINT);
CREATE MACRO ms.utf16(s) AS unhex(array_to_string(list_transform(string_split(s, ''), lambda c: CASE
    WHEN unicode(c) <= 65535 THEN right(lpad(to_hex(unicode(c)), 4, '0'), 2) || left(lpad(to_hex(unicode(c)), 4, '0'), 2)
    ELSE error('[[40000]]The stand-in cannot turn this character into bytes.') END), ''));
CREATE MACRO ms.year_one() AS 62135596800000000;
CREATE MACRO ms.to_step(us, step) AS (us + ms.year_one() + step // 2) // step * step - ms.year_one();
CREATE MACRO ms.time_us(us, scale) AS ms.to_step(us, CAST(pow(10, 6 - scale) AS BIGINT));
CREATE MACRO ms.round_ts(x, scale) AS make_timestamp(ms.time_us(epoch_us(x), scale));
CREATE MACRO ms.round_time(x, scale) AS CAST(make_timestamp(ms.time_us(epoch_us(x), scale)) AS TIME);
CREATE MACRO ms.datetime(x) AS make_timestamp((((epoch_us(x) + ms.year_one()) * 3 + 5000) // 10000 * 20000 + 3) // 6 - ms.year_one());
CREATE MACRO ms.smalldatetime(x) AS make_timestamp(ms.to_step(epoch_us(x), 60000000));
CREATE MACRO ms.parse_ts(s) AS CASE
    WHEN regexp_full_match(trim(s), '\d{8}( .*)?') THEN CAST(left(trim(s), 4) || '-' || substr(trim(s), 5, 2) || '-' || substr(trim(s), 7) AS TIMESTAMP)
    WHEN regexp_full_match(trim(s), '\d{1,2}:.*') THEN CAST('1900-01-01 ' || trim(s) AS TIMESTAMP)
    ELSE CAST(regexp_replace(trim(s), '\s*(Z|[+-]\d\d:?\d\d)$', '') AS TIMESTAMP) END;
CREATE MACRO ms.parse_offset(s) AS CASE WHEN regexp_matches(trim(s), '[+-]\d\d:\d\d$')
    THEN (CASE WHEN left(right(trim(s), 6), 1) = '-' THEN -1 ELSE 1 END)
        * (CAST(substr(right(trim(s), 6), 2, 2) AS INTEGER) * 60 + CAST(right(trim(s), 2) AS INTEGER)) ELSE 0 END;
CREATE MACRO ms.at(utc, m) AS CASE WHEN utc IS NULL OR m IS NULL THEN NULL ELSE {'utc': utc, 'm': CAST(m AS SMALLINT)} END;
CREATE MACRO ms.parse_dto(s) AS ms.at(ms.parse_ts(s) - to_minutes(ms.parse_offset(s)), CASE WHEN s IS NULL THEN NULL ELSE ms.parse_offset(s) END);
CREATE MACRO ms.local(x) AS (x).utc + to_minutes((x).m);
CREATE MACRO ms.offset_text(m) AS (CASE WHEN m < 0 THEN '-' ELSE '+' END) || lpad(CAST(abs(m) // 60 AS VARCHAR), 2, '0') || ':' || lpad(CAST(abs(m) % 60 AS VARCHAR), 2, '0');
CREATE MACRO ms.fraction(us, scale) AS CASE WHEN scale = 0 THEN '' ELSE '.' || left(lpad(CAST(us % 1000000 AS VARCHAR), 6, '0') || '0', scale) END;
CREATE MACRO ms.ts_text(x, format, scale) AS strftime(x, format) || ms.fraction(epoch_us(x) + ms.year_one(), scale);
CREATE MACRO ms.iso_text(x, scale) AS strftime(x, '%Y-%m-%dT%H:%M:%S')
    || CASE WHEN (epoch_us(x) + ms.year_one()) % 1000000 = 0 THEN '' ELSE ms.fraction(epoch_us(x) + ms.year_one(), scale) END;
CREATE MACRO ms.us_text(x) AS strftime(x, '%b ') || lpad(CAST(day(x) AS VARCHAR), 2, ' ') || strftime(x, ' %Y ')
    || lpad(strftime(x, '%-I:%M%p'), 7, ' ');
CREATE MACRO ms.time_text(x, scale) AS strftime(CAST(DATE '1900-01-01' + x AS TIMESTAMP), '%H:%M:%S') || ms.fraction(epoch_us(x), scale);
CREATE MACRO ms.float_text(x) AS CASE WHEN x = trunc(x) AND abs(x) < 1000000 THEN CAST(CAST(x AS BIGINT) AS VARCHAR) ELSE printf('%.6g', x) END;
CREATE MACRO ms.int_text(s) AS CASE WHEN regexp_full_match(s, '\s*[+-]?\d*\s*') THEN CASE WHEN trim(s) = '' THEN '0' ELSE trim(s) END
    ELSE error('[[245]]Conversion failed when converting the varchar value ''' || s || ''' to data type int.') END;
CREATE MACRO ms.bit_text(s) AS CASE lower(trim(s)) WHEN 'true' THEN true WHEN 'false' THEN false ELSE CAST(ms.int_text(s) AS BIGINT) <> 0 END;
CREATE MACRO ms.guid_text(s) AS CASE WHEN TRY_CAST(s[:36] AS UUID) IS NULL AND s IS NOT NULL
    THEN error('[[8169]]Conversion failed when converting from a character string to uniqueidentifier.') ELSE CAST(s[:36] AS UUID) END;
CREATE MACRO ms.char_index(needle, s, start) AS CASE WHEN strpos(lower(s[start:]), lower(needle)) = 0 THEN 0 ELSE strpos(lower(s[start:]), lower(needle)) + start - 1 END;
CREATE MACRO ms.has_perms(granted, securable, kind, permission) AS CAST(CASE WHEN granted IS NULL
    OR list_contains(granted, 'control on database') OR list_contains(granted, lower(permission) || ' on database')
    OR list_contains(granted, lower(permission || ' on ' || kind || '::' || translate(securable, '[]', '')))
    OR (upper(kind) = 'OBJECT' AND list_contains(granted, lower(permission || ' on schema::' || split_part(translate(securable, '[]', ''), '.', 1))))
    THEN 1 ELSE 0 END AS INTEGER);

CREATE MACRO ms.size(type, length) AS CASE WHEN type IN ('ntext', 'nchar', 'nvarchar', 'text', 'char', 'varchar', 'binary', 'varbinary',
    'image', 'xml') THEN CASE type WHEN 'text' THEN 2147483647 WHEN 'image' THEN 2147483647 WHEN 'ntext' THEN 1073741823 ELSE length END END;
CREATE VIEW ms.info_columns AS SELECT '{database}' AS TABLE_CATALOG, schema_name AS TABLE_SCHEMA, table_name AS TABLE_NAME, name AS COLUMN_NAME,
    "position" AS ORDINAL_POSITION, default_sql AS COLUMN_DEFAULT, CASE WHEN nullable THEN 'YES' ELSE 'NO' END AS IS_NULLABLE, type AS DATA_TYPE,
    ms.size(type, length) AS CHARACTER_MAXIMUM_LENGTH,
    CASE WHEN type IN ('nchar', 'nvarchar') AND length > 0 THEN 2 * length WHEN type = 'ntext' THEN 2147483646 ELSE ms.size(type, length) END
        AS CHARACTER_OCTET_LENGTH,
    CAST(CASE type WHEN 'tinyint' THEN 3 WHEN 'smallint' THEN 5 WHEN 'int' THEN 10 WHEN 'bigint' THEN 19 WHEN 'money' THEN 19
        WHEN 'smallmoney' THEN 10 WHEN 'real' THEN 24 WHEN 'float' THEN 53 ELSE "precision" END AS UTINYINT) AS NUMERIC_PRECISION,
    CAST(CASE WHEN type IN ('real', 'float') THEN 2 WHEN type IN ('tinyint', 'smallint', 'int', 'bigint', 'money', 'smallmoney', 'decimal', 'numeric')
        THEN 10 END AS SMALLINT) AS NUMERIC_PRECISION_RADIX,
    CASE WHEN type IN ('tinyint', 'smallint', 'int', 'bigint') THEN 0 WHEN type IN ('money', 'smallmoney') THEN 4
        WHEN type IN ('decimal', 'numeric') THEN scale END AS NUMERIC_SCALE,
    CAST(CASE WHEN type IN ('date', 'smalldatetime') THEN 0 WHEN type = 'datetime' THEN 3
        WHEN type IN ('time', 'datetime2', 'datetimeoffset') THEN scale END AS SMALLINT) AS DATETIME_PRECISION,
    CASE WHEN type IN ('ntext', 'nchar', 'nvarchar', 'text', 'char', 'varchar') THEN 'SQL_Latin1_General_CP1_CI_AS' END AS COLLATION_NAME
    FROM ms.columns;
CREATE VIEW ms.info_tables AS SELECT '{database}' AS TABLE_CATALOG, schema_name AS TABLE_SCHEMA, name AS TABLE_NAME, kind AS TABLE_TYPE FROM ms.objects;
CREATE VIEW ms.info_views AS SELECT '{database}' AS TABLE_CATALOG, schema_name AS TABLE_SCHEMA, name AS TABLE_NAME,
    definition AS VIEW_DEFINITION, 'NONE' AS CHECK_OPTION, 'NO' AS IS_UPDATABLE FROM ms.objects WHERE kind = 'VIEW';
CREATE VIEW ms.info_schemata AS SELECT '{database}' AS CATALOG_NAME, schema_name AS SCHEMA_NAME FROM duckdb_schemas()
    WHERE NOT internal AND schema_name NOT IN ('ms', 'main') AND database_name = current_database();
