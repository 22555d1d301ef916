// The function app, and every setting that it reads.

param location string
param name string
param identityName string
param storageName string
param deploymentContainer string
param insightsName string
param actionGroupId string
@description('Subnet in which the functions run; empty for none.')
param subnetId string
param instanceMemoryMB int
param stateContainer string
param customerioRegion string
param customerioSiteId string
@description('The settings that are secret: references to a vault, or where none can be reached, values.')
@secure()
param secrets object
param timers object
param disabledFunctions array
@description('Other values for `defaults`.')
param settings object

// As in shared/settings.py: a test holds the two equal.
var defaults = {
  SQL_TIME_ZONE: 'UTC'
  CUSTOMERIO_REQUESTS_PER_SECOND: '100'
  CUSTOMERIO_BATCHES_IN_FLIGHT: '4'
  PAGE_SIZE: '5000'
  LOOKBACK_SECONDS: '600'
  CLEAR_WHEN_NULL: ''
  JSON_COLUMNS: ''
  SQL_OWNS_CONSENT: 'false'
  MASS_CHANGE_PERCENT: '5'
  EMPTIED_PERCENT: '20'
  VANISHED_CUSTOMERS: 'report'
  VANISHED_CLEAR: ''
  DEAD_LETTER_DAYS: '30'
  RESYNC_SLICE_ROWS: '50000'
  RESYNC_SLICES_IN_FLIGHT: '4'
  APPROVAL_PEOPLE: '1000'
  QA_STRATA: ''
  QA_WAIT_SECONDS: '180'
  SEGMENTS: ''
  RECONCILIATION_TOLERANCE_PERCENT: '0.5'
  AUDIT_PEOPLE: '20'
  CANARY_CUSTOMER_ID: ''
  CANARY_CAMPAIGN: ''
  CANARY_CART_CAMPAIGN: ''
  TIME_BUDGET_SECONDS: '1500'
}

var schedules = toObject(items(timers), timer => '${toUpper(timer.key)}_SCHEDULE', timer => timer.value.schedule)
var disabled = toObject(disabledFunctions, one => 'AzureWebJobs.${one}.Disabled', one => '1')

// No value of `settings` takes the place of one of these.
var fixed = {
  AzureWebJobsStorage__accountName: storage.name
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: identity.properties.clientId
  STATE_CONTAINER: stateContainer
  FIRST_PASS: 'approved'
  CUSTOMERIO_REGION: customerioRegion
  CUSTOMERIO_SITE_ID: customerioSiteId
  CUSTOMERIO_API_KEY: secrets.CUSTOMERIO_API_KEY
  CUSTOMERIO_APP_API_KEY: secrets.CUSTOMERIO_APP_API_KEY
  SQL_CONNECTION_STRING: secrets.SQL_CONNECTION_STRING
  ALERT_ACTION_GROUP: actionGroupId
  APPLICATIONINSIGHTS_CONNECTION_STRING: insights.properties.ConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'Authorization=AAD;ClientId=${identity.properties.clientId}'
  PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY: 'true'
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityName
}

resource storage 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: storageName
}

resource insights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: insightsName
}

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: '${name}-plan'
  location: location
  kind: 'functionapp'
  sku: {
    name: 'FC1'
    tier: 'FlexConsumption'
  }
  properties: {
    reserved: true
  }
}

resource site 'Microsoft.Web/sites@2024-04-01' = {
  name: name
  location: location
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identity.id}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    keyVaultReferenceIdentity: identity.id
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
      ftpsState: 'Disabled'
      http20Enabled: true
    }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${storage.properties.primaryEndpoints.blob}${deploymentContainer}'
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identity.id
          }
        }
      }
      scaleAndConcurrency: {
        // Azure takes no less. One writer a sync comes from a lease, not from here.
        maximumInstanceCount: 40
        instanceMemoryMB: instanceMemoryMB
      }
      runtime: {
        name: 'python'
        version: '3.13'
      }
    }
  }
}

resource appSettings 'Microsoft.Web/sites/config@2024-04-01' = {
  parent: site
  name: 'appsettings'
  properties: union(defaults, settings, schedules, disabled, fixed)
}

// Publishing is by Entra identities only, never by the site's own user and password.
resource publishing 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-04-01' = [for way in ['scm', 'ftp']: {
  parent: site
  name: way
  properties: {
    allow: false
  }
}]

output name string = site.name
output host string = site.properties.defaultHostName
