// Tidemark in one resource group, without a key anywhere: az deployment group create -g GROUP -f main.bicep -p main.bicepparam
// What is deployed sends nothing until going live is approved: the timers run, and find that no sync is live.

@description('Where everything is deployed. Flex Consumption must be there: az functionapp list-flexconsumption-locations.')
param location string = resourceGroup().location

@description('What every resource is named after: lower-case letters and digits. What must be unique gets a suffix of its own.')
@minLength(3)
@maxLength(10)
param name string = 'tidemark'

@description('Full name of the SQL Server, such as shop.database.windows.net. Another name is another server: the syncs then stop.')
param sqlServer string

@description('The database that has the schema `retention`.')
param sqlDatabase string

@description('true: SQL Server knows no Entra identities (on premises), so the whole connection string with its login comes from the vault\'s secret `sql-connection-string`, and sqlServer and sqlDatabase are not used.')
param sqlLogin bool = false

@description('Region of the Customer.io account.')
@allowed([
  'us'
  'eu'
])
param customerioRegion string

@description('Site id of the Track API credentials. Their key is the vault\'s secret `customerio-api-key`.')
param customerioSiteId string

@description('false: there is no key of the App API, which otherwise is the vault\'s secret `customerio-app-api-key`. Without it `merges` must be switched off, and nothing can be read back.')
param customerioAppApi bool = true

@description('When each timer runs (NCRONTAB of six fields, UTC), and how old its mark may get, or how long it may be silent, before somebody is told: three of its periods or more, and 2,850 minutes at most. A sync of your own is one line more.')
param timers object = {
  customers: { schedule: '0 */15 * * * *', alertAfterMinutes: 60 }
  orders: { schedule: '0 */2 * * * *', alertAfterMinutes: 15 }
  refunds: { schedule: '30 */5 * * * *', alertAfterMinutes: 30 }
  subscriptions: { schedule: '30 */10 * * * *', alertAfterMinutes: 45 }
  back_in_stock: { schedule: '45 */10 * * * *', alertAfterMinutes: 45 }
  carts: { schedule: '30 */2 * * * *', alertAfterMinutes: 15 }
  merges: { schedule: '0 7-59/15 * * * *', alertAfterMinutes: 60 }
  removals: { schedule: '15 */5 * * * *', alertAfterMinutes: 30 }
  comparison: { schedule: '0 30 2 * * *' } // tells no metric of its own: it is a run, with its own page
  reconciliation: { schedule: '0 0 5 * * *', alertAfterMinutes: 2160 }
  night: { schedule: '0 30 3 * * *', alertAfterMinutes: 2160 }
}

@description('Functions that are switched off, such as syncs without a view: [\'carts\', \'merges\'].')
param disabledFunctions array = []

@description('Other values for the settings of README.md that have a default: { SQL_TIME_ZONE: \'Europe/Berlin\', SEGMENTS: \'vip=12\' }. All are texts.')
param settings object = {}

@description('Who is told of alerts: e-mail addresses.')
param alertEmails array

@description('Where this repository can be read, without a slash at its end. Each alert links to its page in docs/runbooks there.')
param repositoryUrl string

@description('Object id of who writes the secrets into the vault: az ad signed-in-user show --query id -o tsv. Left out, somebody must be given the role Key Vault Secrets Officer on it.')
param operatorPrincipalId string = ''

@description('What kind of principal that is.')
@allowed([
  'User'
  'Group'
  'ServicePrincipal'
])
param operatorPrincipalType string = 'User'

@description('How the state is kept: three zones of the region, or Standard_LRS where the region has none.')
@allowed([
  'Standard_ZRS'
  'Standard_LRS'
  'Standard_GZRS'
])
param storageSku string = 'Standard_ZRS'

@description('Memory of an instance in MB. What a pass needs does not grow with the table.')
@allowed([
  512
  2048
  4096
])
param instanceMemoryMB int = 2048

@description('true: the storage is reached only through private endpoints in a virtual network of its own, in which the functions run. A vault that is closed to the internet resolves no references of Flex Consumption, so there is none: the three secrets are then given to each deployment, which writes them into the app settings (encrypted at rest; who may list app settings can read them). Take them from a vault of yours by az.getSecret() in main.bicepparam. Application Insights stays on its public endpoint.')
param privateNetwork bool = false

@description('With privateNetwork: key of the Track API.')
@secure()
param customerioApiKey string = ''

@description('With privateNetwork: key of the App API.')
@secure()
param customerioAppApiKey string = ''

@description('With privateNetwork and sqlLogin: the connection string with its login.')
@secure()
param sqlConnectionString string = ''

@description('With privateNetwork: the addresses of the network, a /24 that overlaps no network it is peered with.')
param addressPrefix string = '10.90.0.0/24'

@description('With privateNetwork: resource id of the Azure SQL server that gets a private endpoint too. Left out, peer the network with the one from which SQL Server can be reached.')
param sqlServerId string = ''

var suffix = uniqueString(resourceGroup().id, name)
// The blob container of the state; the queues have its name.
var stateContainer = 'tidemark'
var keyless = 'Server=tcp:${sqlServer},1433;Database=${sqlDatabase};Authentication=ActiveDirectoryMsi;UID=${identity.properties.clientId};Encrypt=yes'
// Every key is here, and nowhere else.
var vaultSecrets = 'https://${name}-${suffix}${environment().suffixes.keyvaultDns}/secrets'
var references = {
  CUSTOMERIO_API_KEY: '@Microsoft.KeyVault(SecretUri=${vaultSecrets}/customerio-api-key)'
  CUSTOMERIO_APP_API_KEY: customerioAppApi ? '@Microsoft.KeyVault(SecretUri=${vaultSecrets}/customerio-app-api-key)' : ''
  SQL_CONNECTION_STRING: sqlLogin ? '@Microsoft.KeyVault(SecretUri=${vaultSecrets}/sql-connection-string)' : keyless
}
var values = {
  CUSTOMERIO_API_KEY: customerioApiKey
  CUSTOMERIO_APP_API_KEY: customerioAppApiKey
  SQL_CONNECTION_STRING: sqlLogin ? sqlConnectionString : keyless
}
// A reconciliation of no segments has nothing to tell.
var unwatched = concat(disabledFunctions, empty(settings.?SEGMENTS) ? ['reconciliation'] : [])

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-identity'
  location: location
}

module storage 'storage.bicep' = {
  name: '${name}-storage'
  params: {
    location: location
    name: '${name}${suffix}'
    sku: storageSku
    stateContainer: stateContainer
    deadLetterDays: int(settings.?DEAD_LETTER_DAYS ?? '30')
    syncs: filter(objectKeys(timers), timer => !contains(['comparison', 'reconciliation', 'night'], timer))
    isPrivate: privateNetwork
    principalId: identity.properties.principalId
  }
}

module vault 'vault.bicep' = if (!privateNetwork) {
  name: '${name}-vault'
  params: {
    location: location
    name: '${name}-${suffix}'
    principalId: identity.properties.principalId
    operatorPrincipalId: operatorPrincipalId
    operatorPrincipalType: operatorPrincipalType
  }
}

module network 'network.bicep' = if (privateNetwork) {
  name: '${name}-network'
  params: {
    location: location
    name: name
    addressPrefix: addressPrefix
    storageId: storage.outputs.id
    sqlServerId: sqlServerId
  }
}

module monitoring 'monitoring.bicep' = {
  name: '${name}-monitoring'
  params: {
    location: location
    name: name
    alertEmails: alertEmails
    principalId: identity.properties.principalId
  }
}

module app 'app.bicep' = {
  name: '${name}-app'
  params: {
    location: location
    name: '${name}-${suffix}'
    identityName: identity.name
    storageName: storage.outputs.name
    deploymentContainer: storage.outputs.deploymentContainer
    insightsName: monitoring.outputs.insightsName
    actionGroupId: monitoring.outputs.actionGroupId
    subnetId: privateNetwork ? network!.outputs.subnetId : ''
    instanceMemoryMB: instanceMemoryMB
    stateContainer: stateContainer
    customerioRegion: customerioRegion
    customerioSiteId: customerioSiteId
    secrets: privateNetwork ? values : references
    timers: timers
    disabledFunctions: disabledFunctions
    settings: settings
  }
  dependsOn: [
    vault
  ]
}

module alerts 'alerts.bicep' = {
  name: '${name}-alerts'
  params: {
    location: location
    name: name
    insightsId: monitoring.outputs.insightsId
    actionGroupId: monitoring.outputs.actionGroupId
    repositoryUrl: repositoryUrl
    timers: timers
    unwatched: unwatched
  }
}

@description('For func azure functionapp publish.')
output functionAppName string = app.outputs.name

@description('Where the calls of README.md go: https://<this>/api/...')
output functionAppHost string = app.outputs.host

@description('For sql/grants.sql: the user that SQL Server is to know.')
output identityName string = identity.name

@description('Client id of that identity.')
output identityClientId string = identity.properties.clientId

@description('Object id of that identity, for further role assignments.')
output principalId string = identity.properties.principalId

@description('For az keyvault secret set. Empty with privateNetwork: there is no vault then.')
output vaultName string = privateNetwork ? '' : vault!.outputs.name

@description('The account of the state, in its container `tidemark`.')
output storageAccountName string = storage.outputs.name

@description('Application Insights, where logs, metrics and the workbook are.')
output insightsName string = monitoring.outputs.insightsName
