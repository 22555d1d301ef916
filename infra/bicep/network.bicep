// A virtual network of the functions' own, in which storage (and an Azure SQL server) are reached by private endpoints.

param location string
param name string
param addressPrefix string
param storageId string
@description('Resource id of an Azure SQL server; empty for none.')
param sqlServerId string

// `group` is what Azure calls the part of a resource that an endpoint leads to.
var storageEndpoints = [for group in ['blob', 'queue', 'table']: {
  group: group
  service: storageId
  zone: 'privatelink.${group}.${environment().suffixes.storage}'
}]
var sqlEndpoints = [
  {
    group: 'sqlServer'
    service: sqlServerId
    zone: 'privatelink${environment().suffixes.sqlServerHostname}'
  }
]
var reached = concat(storageEndpoints, empty(sqlServerId) ? [] : sqlEndpoints)

resource network 'Microsoft.Network/virtualNetworks@2023-11-01' = {
  name: '${name}-network'
  location: location
  properties: {
    addressSpace: {
      addressPrefixes: [
        addressPrefix
      ]
    }
    subnets: [
      {
        name: 'functions' // Flex Consumption takes no subnet with an underscore in its name
        properties: {
          addressPrefix: cidrSubnet(addressPrefix, 26, 0)
          delegations: [
            {
              name: 'flex-consumption'
              properties: {
                serviceName: 'Microsoft.App/environments'
              }
            }
          ]
        }
      }
      {
        name: 'endpoints'
        properties: {
          addressPrefix: cidrSubnet(addressPrefix, 26, 1)
          privateEndpointNetworkPolicies: 'Disabled'
        }
      }
    ]
  }
}

resource zones 'Microsoft.Network/privateDnsZones@2020-06-01' = [for one in reached: {
  name: one.zone
  location: 'global'
}]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2020-06-01' = [for (one, index) in reached: {
  parent: zones[index]
  name: name
  location: 'global'
  properties: {
    registrationEnabled: false
    virtualNetwork: {
      id: network.id
    }
  }
}]

resource privateEndpoints 'Microsoft.Network/privateEndpoints@2023-11-01' = [for one in reached: {
  name: '${name}-${one.group}'
  location: location
  properties: {
    subnet: {
      id: '${network.id}/subnets/endpoints'
    }
    privateLinkServiceConnections: [
      {
        name: one.group
        properties: {
          privateLinkServiceId: one.service
          groupIds: [
            one.group
          ]
        }
      }
    ]
  }
}]

resource zoneGroups 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2023-11-01' = [for (one, index) in reached: {
  parent: privateEndpoints[index]
  name: 'default'
  properties: {
    privateDnsZoneConfigs: [
      {
        name: one.group
        properties: {
          privateDnsZoneId: zones[index].id
        }
      }
    ]
  }
}]

output subnetId string = '${network.id}/subnets/functions'
