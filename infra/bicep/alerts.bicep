// Who is told of what, and a workbook that shows a week. A rule's name is that of its page in docs/runbooks.
// Every query returns a row for each sync that is in trouble, without a time, or Azure would cut the rows into intervals.
// With no row left the alert resolves itself.

param location string
param name string
@description('The Application Insights component, whose customMetrics are the metrics of README.md.')
param insightsId string
param actionGroupId string
param repositoryUrl string
param timers object
@description('Timers that may be silent.')
param unwatched array

var watched = filter(items(timers), timer => contains(timer.value, 'alertAfterMinutes') && !contains(unwatched, timer.key))
var limits = join(map(watched, timer => '"${timer.key}", ${timer.value.alertAfterMinutes}'), ', ')

// Severities: 1 customers notice soon, 2 customers notice in time, 3 somebody should look this week.
var rules = [
  {
    name: 'pass-failing'
    severity: 1
    frequency: 'PT5M'
    window: 'P2D'
    text: 'The passes of a sync have failed since its last good one. Customer.io does not learn what has changed: journeys start late or not at all. Nothing is lost; the next good pass goes on from the mark.'
    query: '''
let runs = customMetrics
| where name == "tidemark.runs"
| extend sync = tostring(customDimensions.sync), outcome = tostring(customDimensions.outcome);
runs
| where outcome == "failed"
| join kind=leftouter (runs | where outcome in ("ok", "budget") | summarize well = max(timestamp) by sync) on sync
| where isnull(well) or timestamp > well
| summarize failures = count(), began = min(timestamp) by sync
| where failures > 1 or began < ago(15m)
'''
  }
  {
    name: 'mark-old'
    severity: 2
    frequency: 'PT5M'
    window: 'P2D'
    text: 'A sync has not read its view to the end for longer than its schedule allows. What customers did since may not have reached Customer.io: messages are late, and segments hold people of before.'
    query: '''
customMetrics
| where name == "tidemark.mark_age"
| extend sync = tostring(customDimensions.sync)
| summarize arg_max(timestamp, valueMax) by sync
| join kind=inner limits on sync
| where valueMax > minutes * 60
| project-away timestamp
'''
  }
  {
    name: 'silence'
    severity: 1
    frequency: 'PT15M'
    window: 'P2D'
    // a pass tells when it ends, and it may take TIME_BUDGET_SECONDS
    text: 'A timer has told nothing for longer than its schedule and one long pass allow. It does not run, or its metrics do not arrive: nothing is sent, and no other alert can say so.'
    query: '''
limits
| join kind=leftouter (
    customMetrics
    | where name in ("tidemark.runs", "tidemark.findings")
    | extend check = tostring(customDimensions.check)
    | extend sync = case(name == "tidemark.runs", tostring(customDimensions.sync), check == "volume", "night", check)
    | summarize heard = max(timestamp) by sync
) on sync
| where isnull(heard) or heard < ago((minutes + 30) * 1m)
'''
  }
  {
    name: 'dead-letters'
    severity: 3
    frequency: 'PT15M'
    window: 'P2D'
    text: 'Rows could not be delivered and were set aside. The customers that they are about have wrong attributes or lack an event, until the rows are mended and replayed; all others are served.'
    query: '''
customMetrics
| where name == "tidemark.dead_letter_depth"
| extend sync = tostring(customDimensions.sync)
| summarize arg_max(timestamp, valueMax) by sync
| where valueMax > 0
| project-away timestamp
'''
  }
  {
    name: 'stopped-before-sending'
    severity: 1
    frequency: 'PT5M'
    window: 'P2D'
    text: 'A sync has stopped before it would have set aside very many rows, changed very many people, or emptied an attribute for many. No customer has noticed yet. It sends nothing until the view is mended or a person lets it pass.'
    query: '''
let stops = customMetrics
| where name == "tidemark.stops"
| extend sync = tostring(customDimensions.sync), stop = tostring(customDimensions["kind"])
| summarize stopped = max(timestamp) by sync, stop;
stops
| join kind=leftouter (
    customMetrics
    | where name == "tidemark.runs"
    | extend sync = tostring(customDimensions.sync), outcome = tostring(customDimensions.outcome)
    | where outcome in ("ok", "budget")
    | summarize well = max(timestamp) by sync
) on sync
| where isnull(well) or stopped > well
'''
  }
  {
    name: 'drift'
    severity: 2
    frequency: 'PT15M'
    window: 'P2D'
    text: 'A column is gone, has changed its type, or is empty much more often than it was. Customer.io keeps the last good values of it, so conditions of segments and campaigns on it grow stale.'
    query: '''
customMetrics
| where name in ("tidemark.drift", "tidemark.findings")
| extend sync = tostring(customDimensions.sync), check = tostring(customDimensions.check)
| where name == "tidemark.drift" or check == "census"
| summarize arg_max(timestamp, valueMax) by sync, name
| where valueMax > 0
| project-away timestamp
'''
  }
  {
    name: 'reconciliation-off'
    severity: 2
    frequency: 'PT1H'
    window: 'P2D'
    text: 'A segment of Customer.io does not hold the people who SQL Server says belong to it. Customers get messages that are not for them, or miss theirs.'
    query: '${findings}| where check == "reconciliation"'
  }
  {
    name: 'volume-outside'
    severity: 2
    frequency: 'PT1H'
    window: 'P2D'
    text: 'Yesterday far more, or far fewer, events or changes went to Customer.io than on such a day before. Customers may have been left out, or be written to too often.'
    query: '${findings}| where check == "volume"'
  }
  {
    name: 'freshness'
    severity: 2
    frequency: 'PT15M'
    window: 'P2D'
    text: 'What customers do reaches Customer.io too late: a cart is not reminded of in time, an order is thanked for late, or a reminder goes out after the order.'
    query: '${findings}| where check == "freshness"'
  }
  {
    name: 'audit'
    severity: 2
    frequency: 'PT15M'
    window: 'P2D'
    text: 'What Customer.io holds of some people is not what was sent: an attribute differs, or an event is missing or there twice. Customers get messages that are wrong for them.'
    query: '${findings}| where check startswith "audit"'
  }
  {
    name: 'canary'
    severity: 1
    frequency: 'PT15M'
    window: 'P2D'
    text: 'The test person did not get the one message that the canary campaign owes. Customers may get none, or the same one twice. The alert ends with a canary that is well, or after two days.'
    query: '${findings}| where check startswith "canary"'
  }
  {
    name: 'poison-slices'
    severity: 1
    frequency: 'PT5M'
    window: 'P1D'
    text: 'A slice of a resync or of going live failed again and again and was given up. Its people or events are not at Customer.io until the run is retried. The alert ends a day after the last slice was given up.'
    query: '''
customMetrics
| where name == "tidemark.slices_given_up"
| extend sync = tostring(customDimensions.sync)
| summarize slices = sum(valueSum) by sync
| where slices > 0
'''
  }
  {
    name: 'throttled'
    severity: 3
    frequency: 'PT15M'
    window: 'PT1H'
    text: 'Customer.io has answered more than one request of twenty with "too many" for an hour. All is sent, but slowly: other senders use the same workspace, or CUSTOMERIO_REQUESTS_PER_SECOND is too high.'
    query: '''
customMetrics
| where name in ("tidemark.throttled", "tidemark.requests")
| extend sync = tostring(customDimensions.sync)
| summarize
    throttled = sumif(valueSum, name == "tidemark.throttled"),
    requests = sumif(valueSum, name == "tidemark.requests"),
    quarters = dcountif(bin(timestamp, 15m), name == "tidemark.throttled")
    by sync
| where quarters >= 4 and throttled * 20 > requests
'''
  }
  {
    name: 'bound-frozen'
    severity: 2
    frequency: 'PT15M'
    window: 'PT30M'
    text: 'A transaction in SQL Server has been open for so long that nothing written since can be read. Customer.io learns nothing new of any sync until it ends.'
    query: '''
customMetrics
| where name == "tidemark.held_back"
| extend sync = tostring(customDimensions.sync)
| summarize arg_max(timestamp, valueMax) by sync
| where valueMax >= 15
| project-away timestamp
'''
  }
]

// The latest that each check has told of each sync. A check tells 0 when what it had found is over.
var findings = '''
customMetrics
| where name == "tidemark.findings"
| extend sync = tostring(customDimensions.sync), check = tostring(customDimensions.check)
| summarize arg_max(timestamp, valueMax) by sync, check
| where valueMax > 0
| project-away timestamp
'''

resource alert 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [for rule in rules: {
  name: '${name}-${rule.name}'
  location: location
  kind: 'LogAlert'
  properties: {
    displayName: '${name}: ${rule.name}'
    description: '${rule.text} What to do: ${repositoryUrl}/blob/main/docs/runbooks/${rule.name}.md'
    severity: rule.severity
    enabled: true
    autoMitigate: true
    evaluationFrequency: rule.frequency
    windowSize: rule.window
    scopes: [
      insightsId
    ]
    criteria: {
      allOf: [
        {
          query: 'let limits = datatable(sync: string, minutes: long) [${limits}];\n${rule.query}'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
          dimensions: [
            {
              name: 'sync'
              operator: 'Include'
              values: [
                '*'
              ]
            }
          ]
          failingPeriods: {
            numberOfEvaluationPeriods: 1
            minFailingPeriodsToAlert: 1
          }
        }
      ]
    }
    actions: {
      actionGroups: [
        actionGroupId
      ]
      customProperties: {
        runbook: '${repositoryUrl}/blob/main/docs/runbooks/${rule.name}.md'
      }
    }
  }
}]

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, name, 'a week of Tidemark')
  location: location
  kind: 'shared'
  properties: {
    displayName: '${name}: a week'
    category: 'workbook'
    version: '1.0'
    sourceId: insightsId
    serializedData: loadTextContent('workbook.json')
  }
}
