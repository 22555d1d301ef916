// The account that holds the state, the published package and the queues. Nobody has a key to it.

param location string
param name string
param sku string
@description('Blob container of the state. The queues have its name.')
param stateContainer string
@description('The setting DEAD_LETTER_DAYS.')
param deadLetterDays int
@description('The syncs, each of which has its folder in the state container.')
param syncs array
@description('Whether only private endpoints reach it.')
param isPrivate bool
@description('Object id of the functions\' identity.')
param principalId string

// What was overwritten or deleted can be brought back for so many days (docs/recovery.md).
var keptDays = 14
// Records of runs are read by people only. Dead letters are dropped by the code long before this.
var recordDays = deadLetterDays + 60
var deploymentContainer = 'deployment'
var queues = [
  '${stateContainer}-plans'
  '${stateContainer}-plans-poison'
  '${stateContainer}-slices'
  '${stateContainer}-slices-poison'
  '${stateContainer}-audits'
  '${stateContainer}-audits-poison'
]
// https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
var roles = {
  blobDataOwner: 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b' // state, package, and the host's own leases and keys
  queueDataContributor: '974c5e8b-45b9-4653-ba55-5f855dd0fb88' // the host makes and fills the -poison queues
  tableDataContributor: '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3' // the host's diagnostic events
}

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: name
  location: location
  kind: 'StorageV2'
  sku: {
    name: sku
  }
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowSharedKeyAccess: false
    allowCrossTenantReplication: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
    networkAcls: {
      bypass: 'None'
      defaultAction: isPrivate ? 'Deny' : 'Allow'
    }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: account
  name: 'default'
  properties: {
    isVersioningEnabled: true
    deleteRetentionPolicy: {
      enabled: true
      days: keptDays
    }
    containerDeleteRetentionPolicy: {
      enabled: true
      days: keptDays
    }
  }
}

resource state 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: stateContainer
  properties: {
    publicAccess: 'None'
  }
}

resource package 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: deploymentContainer
  properties: {
    publicAccess: 'None'
  }
}

resource queueService 'Microsoft.Storage/storageAccounts/queueServices@2023-05-01' = {
  parent: account
  name: 'default'
}

resource queue 'Microsoft.Storage/storageAccounts/queueServices/queues@2023-05-01' = [for queueName in queues: {
  parent: queueService
  name: queueName
}]

// A rule has room for ten prefixes: one rule a sync.
var syncRules = [for sync in syncs: {
  name: 'records-${replace(sync, '_', '-')}'
  enabled: true
  type: 'Lifecycle'
  definition: {
    actions: {
      baseBlob: {
        delete: {
          daysAfterModificationGreaterThan: recordDays
        }
      }
    }
    filters: {
      blobTypes: [
        'blockBlob'
        'appendBlob'
      ]
      prefixMatch: [
        '${stateContainer}/syncs/${sync}/runs/'
        '${stateContainer}/syncs/${sync}/dead-letters/'
      ]
    }
  }
}]

resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2023-05-01' = {
  parent: account
  name: 'default'
  properties: {
    policy: {
      rules: concat(syncRules, [
        {
          name: 'records-of-what-people-asked-for'
          enabled: true
          type: 'Lifecycle'
          definition: {
            actions: {
              baseBlob: {
                delete: {
                  daysAfterModificationGreaterThan: recordDays
                }
              }
            }
            filters: {
              blobTypes: [
                'blockBlob'
              ]
              prefixMatch: [
                '${stateContainer}/runs/'
              ]
            }
          }
        }
        {
          name: 'earlier-versions'
          enabled: true
          type: 'Lifecycle'
          definition: {
            actions: {
              version: {
                delete: {
                  daysAfterCreationGreaterThan: keptDays
                }
              }
            }
            filters: {
              blobTypes: [
                'blockBlob'
                'appendBlob'
              ]
            }
          }
        }
      ])
    }
  }
  dependsOn: [
    blobs
  ]
}

// The host makes containers, queues and tables of its own names, so the account is the narrowest scope; it serves nothing else.
resource assignments 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for role in items(roles): {
  name: guid(account.id, principalId, role.value)
  scope: account
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.value)
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}]

output id string = account.id
output name string = account.name
output deploymentContainer string = package.name
