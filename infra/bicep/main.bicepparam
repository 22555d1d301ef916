// An example: put in your own values. No secret belongs here.
using 'main.bicep'

param sqlServer = 'shop.database.windows.net'
param sqlDatabase = 'shop'
param customerioRegion = 'eu'
param customerioSiteId = '0123456789abcdef0123'
param alertEmails = [
  'on-call@example.com'
]
param repositoryUrl = 'https://github.com/example/tidemark'

// who may write the two keys into the vault: az ad signed-in-user show --query id -o tsv
param operatorPrincipalId = readEnvironmentVariable('OPERATOR_PRINCIPAL_ID', '')

param settings = {
  SQL_TIME_ZONE: 'Europe/Berlin'
}
// a sync without a view is switched off
param disabledFunctions = []
