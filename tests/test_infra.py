"""The deployment in infra/bicep: that it can be read, agrees with the code, and keeps to shapes that Azure has.

No Bicep compiler is here, and Azure neither: the workflow in .github compiles, and what only a deployment could show is
not shown. pycep reads the syntax; what names, shapes, settings, queries and roles must be is held here.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pycep import BicepParser
from pydantic import SecretStr

from local.host.app import cron
from shared.resync import Runs, Stage
from shared.settings import Settings, load, setting_name
from shared.state import State
from shared.syncs import CATALOGUE, SCHEDULES
from shared.telemetry import METRICS

REPOSITORY = Path(__file__).resolve().parent.parent
BICEP = REPOSITORY / "infra" / "bicep"
FILES = sorted(path.name for path in BICEP.glob("*.bicep"))
CODE = {path.name: path.read_text() for path in (REPOSITORY / "shared").glob("*.py")}

Json = Any


@cache
def text_of(file: str) -> str:
    return (BICEP / file).read_text()


@cache
def read(file: str) -> Json:
    """A file's parameters, variables, resources, modules and outputs. What is no literal is a tree or a name."""
    return BicepParser().parse(text=text_of(file))


def body(declared: Json) -> Json:
    """What a resource or module is made of, within its condition and its loop."""
    config = declared["config"]
    while "config" in config:
        config = config["config"]
    return config


def value(file: str, variable: str) -> Json:
    return read(file)["variables"][variable]["value"]


def default(parameter: str) -> Json:
    return read("main.bicep")["parameters"][parameter]["default"]


def resources() -> Iterator[tuple[str, Json]]:
    for file in FILES:
        for name, declared in read(file).get("resources", {}).items():
            if not declared["existing"]:
                yield f"{file}: {name}", declared


# --- that it holds together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_every_file_can_be_read(file):
    assert read(file)


def test_every_module_gets_the_parameters_that_it_declares_and_gives_the_outputs_that_are_asked_for():
    modules = read("main.bicep")["modules"]
    assert {module["detail"]["path"] for module in modules.values()} == set(FILES) - {"main.bicep"}
    for name, module in modules.items():
        declared = read(module["detail"]["path"])
        assert set(body(module)["params"]) == set(declared["parameters"]), name
        asked = set(re.findall(rf"\b{name}!?\.outputs\.(\w+)", text_of("main.bicep")))
        assert asked <= set(declared.get("outputs", {})), name


BUILT_IN = {
    "bool", "array", "cidrSubnet", "concat", "contains", "empty", "environment", "existing", "false", "filter", "for", "guid", "if",
    "in", "int", "items", "join", "loadTextContent", "map", "module", "null", "object", "objectKeys", "output", "param",
    "replace", "resource", "resourceGroup", "string", "subscription", "subscriptionResourceId", "toObject", "toUpper", "true",
    "union", "uniqueString", "var",
}  # fmt: skip


NO_CODE = re.compile(r"""'''.*?'''|//[^\n]*|'(?:\\.|\$\{[^}]*\}|[^'\\\n])*'""", re.S)


def words(code: str) -> Iterator[str]:
    """The names that a file uses: no comments, texts, decorators, names of properties or keys of objects."""
    for literal in NO_CODE.findall(code):
        if literal.startswith("'") and not literal.startswith("'''"):
            for expression in re.findall(r"\$\{(.*?)\}", literal):
                yield from words(expression)
    code = re.sub(r"@\w+\([^)]*\)", "", NO_CODE.sub("''", code))
    for match in re.finditer(r"(?<![\w.?])[A-Za-z_]\w*", code):
        key = code[match.end() :].lstrip(" ").startswith(":")
        if not key or re.search(r"(\bin|\?) *$", code[: match.start()]):
            yield match[0]


@pytest.mark.parametrize("file", FILES)
def test_a_file_uses_no_name_that_it_does_not_declare_and_declares_none_that_it_does_not_use(file):
    parsed = read(file)
    kinds = ("parameters", "variables", "resources", "modules")
    declared = {name for kind in kinds for name in parsed.get(kind, {})}
    local = set(re.findall(r"(\w+) =>|for (\w+) in|for \((\w+), (\w+)\) in", text_of(file)))
    named = {name for names in local for name in names if name}
    assert not named & declared, "a name within a loop or lambda hides another"
    used = list(words(text_of(file)))
    outputs = {name for name in parsed.get("outputs", {})}
    assert set(used) - declared - named - BUILT_IN - outputs == set()
    unused = {name for kind in ("parameters", "variables") for name in parsed.get(kind, {}) if used.count(name) < 2}
    assert unused == set()


def test_every_parameter_of_a_deployment_is_described_and_the_example_gives_what_is_required():
    parameters = read("main.bicep")["parameters"]
    for kind in ("parameters", "outputs"):
        for name, one in read("main.bicep")[kind].items():
            assert any(decorator["type"] == "description" for decorator in one["decorators"]), name
    example = (BICEP / "main.bicepparam").read_text()
    assert "using 'main.bicep'" in example
    given = set(re.findall(r"(?m)^param (\w+) = ", example))
    assert given <= set(parameters)
    assert {name for name, one in parameters.items() if one.get("default") is None} <= given


# --- shapes -----------------------------------------------------------------------------------------------------------

PLACED = {"name", "location"}
# The properties of each type that are used here, by Microsoft's published shapes (learn.microsoft.com/azure/templates):
# a name that is not here is misspelt, or to be looked up there first. The last word of a line may be several.
SHAPES: dict[str, str] = {
    "Microsoft.Authorization/roleAssignments@2022-04-01": """
        scope properties(roleDefinitionId principalId principalType)""",
    "Microsoft.Insights/actionGroups@2023-01-01": """
        properties(groupShortName enabled emailReceivers(name emailAddress useCommonAlertSchema))""",
    "Microsoft.Insights/components@2020-02-02": """
        kind properties(Application_Type WorkspaceResourceId DisableLocalAuth)""",
    "Microsoft.Insights/scheduledQueryRules@2023-12-01": """
        kind properties(displayName description severity enabled autoMitigate evaluationFrequency windowSize scopes
            criteria(allOf(query timeAggregation operator threshold dimensions(name operator values)
                failingPeriods(numberOfEvaluationPeriods minFailingPeriodsToAlert)))
            actions(actionGroups customProperties(runbook)))""",
    "Microsoft.Insights/workbooks@2023-06-01": """
        kind properties(displayName category version sourceId serializedData)""",
    "Microsoft.KeyVault/vaults@2023-07-01": """
        properties(tenantId sku(family name) enableRbacAuthorization enableSoftDelete enablePurgeProtection
            softDeleteRetentionInDays publicNetworkAccess)""",
    "Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31": "",
    "Microsoft.Network/privateDnsZones@2020-06-01": "",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks@2020-06-01": """
        parent properties(registrationEnabled virtualNetwork(id))""",
    "Microsoft.Network/privateEndpoints@2023-11-01": """
        properties(subnet(id) privateLinkServiceConnections(name properties(privateLinkServiceId groupIds)))""",
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2023-11-01": """
        parent properties(privateDnsZoneConfigs(name properties(privateDnsZoneId)))""",
    "Microsoft.Network/virtualNetworks@2023-11-01": """
        properties(addressSpace(addressPrefixes) subnets(name properties(addressPrefix privateEndpointNetworkPolicies
            delegations(name properties(serviceName)))))""",
    "Microsoft.OperationalInsights/workspaces@2023-09-01": """
        properties(sku(name) retentionInDays features(disableLocalAuth))""",
    "Microsoft.Storage/storageAccounts@2023-05-01": """
        kind sku(name) properties(accessTier allowBlobPublicAccess allowSharedKeyAccess allowCrossTenantReplication
            defaultToOAuthAuthentication minimumTlsVersion supportsHttpsTrafficOnly publicNetworkAccess
            networkAcls(bypass defaultAction))""",
    "Microsoft.Storage/storageAccounts/blobServices@2023-05-01": """
        parent properties(isVersioningEnabled deleteRetentionPolicy(enabled days)
            containerDeleteRetentionPolicy(enabled days))""",
    "Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01": "parent properties(publicAccess)",
    "Microsoft.Storage/storageAccounts/managementPolicies@2023-05-01": """
        parent dependsOn properties(policy(rules(name enabled type definition(
            actions(baseBlob(delete(daysAfterModificationGreaterThan)) version(delete(daysAfterCreationGreaterThan)))
            filters(blobTypes prefixMatch)))))""",
    "Microsoft.Storage/storageAccounts/queueServices@2023-05-01": "parent",
    "Microsoft.Storage/storageAccounts/queueServices/queues@2023-05-01": "parent",
    "Microsoft.Web/serverfarms@2024-04-01": "kind sku(name tier) properties(reserved)",
    "Microsoft.Web/sites@2024-04-01": """
        kind identity(type userAssignedIdentities(${identity.id}))
        properties(serverFarmId httpsOnly keyVaultReferenceIdentity virtualNetworkSubnetId
            siteConfig(minTlsVersion scmMinTlsVersion ftpsState http20Enabled)
            functionAppConfig(
                deployment(storage(type value authentication(type userAssignedIdentityResourceId)))
                scaleAndConcurrency(maximumInstanceCount instanceMemoryMB)
                runtime(name version)))""",
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-04-01": "parent properties(allow)",
    "Microsoft.Web/sites/config@2024-04-01": "parent properties",
}


def shape(text: str) -> set[str]:
    """`a b(c d)` as the paths a, b, b.c and b.d."""
    paths, within, last = set[str](), list[str](), ""
    for word in re.findall(r"[^\s()]+|[()]", text):
        if word == "(":
            within.append(last)
        elif word == ")":
            within.pop()
        else:
            last = word
            paths.add(".".join([*within, word]))
    return paths


def keys(tree: Json, file: str, within: str = "") -> Iterator[str]:
    """The paths of all keys. Texts of resources that are put together elsewhere in the file are looked into there."""
    if isinstance(tree, list):
        for one in tree:
            yield from keys(one, file, within)
    elif isinstance(tree, dict):
        if "loop_type" in tree:
            yield from keys(tree["config"], file, within)
        elif isinstance(function := tree.get("function"), dict):
            if function["type"] == "concat":  # of lists of objects
                yield from keys(list(function["parameters"].values()), file, within)
        elif not isinstance(tree.get("operator"), dict):
            for key, one in tree.items():
                name = key.strip("'")
                yield (path := f"{within}.{name}".lstrip("."))
                yield from keys(one, file, path)
    elif isinstance(tree, str) and within and tree in read(file).get("variables", {}):
        variable = value(file, tree)
        if not isinstance(variable, str):
            yield from keys(variable, file, within)


def test_no_resource_has_a_property_outside_the_published_shape_of_its_type():
    used: dict[str, set[str]] = {}
    for name, declared in resources():
        kind = f"{declared['type']}@{declared['api_version']}"
        assert kind in SHAPES, name
        found = set(keys(body(declared), name.partition(":")[0])) - PLACED
        assert found - shape(SHAPES[kind]) == set(), name
        used.setdefault(kind, set()).update(found)
    assert {kind: shape(text) for kind, text in SHAPES.items()} == used, "a shape that nothing uses"


# --- settings ---------------------------------------------------------------------------------------------------------

# On a machine of ours they name stand-ins and keys.
NOT_DEPLOYED = {"AzureWebJobsStorage", "CUSTOMERIO_TRACK_URL", "CUSTOMERIO_APP_URL"}
THE_PLATFORMS = {
    "AzureWebJobsStorage__credential",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
    "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY",
}


def test_the_app_settings_are_the_settings_of_the_code_each_with_its_default():
    defaults, fixed = value("app.bicep", "defaults"), value("app.bicep", "fixed")
    ours = {setting_name(field) for field in Settings.model_fields} - NOT_DEPLOYED
    assert not set(defaults) & set(fixed)
    assert set(defaults) | set(fixed) == ours | THE_PLATFORMS
    for name, field in Settings.model_fields.items():
        if (setting := setting_name(name)) in defaults:
            meant = field.get_default(call_default_factory=True)
            as_text = str(meant).lower() if isinstance(meant, bool) else str(meant or "")
            assert defaults[setting] == as_text, setting


def test_the_settings_of_a_deployment_are_good_and_nothing_is_live_by_itself(monkeypatch):
    deployed = {**value("app.bicep", "defaults"), **value("app.bicep", "fixed")}
    assert deployed["FIRST_PASS"] == "approved"
    deployed |= {
        "SQL_CONNECTION_STRING": value("main.bicep", "keyless"),
        "CUSTOMERIO_REGION": "eu",
        "STATE_CONTAINER": value("main.bicep", "stateContainer"),
    }
    for name in NOT_DEPLOYED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WEBSITE_SITE_NAME", "as in Azure")
    for name, text in deployed.items():
        monkeypatch.setenv(name, text if isinstance(text, str) else "an expression")
    assert load().first_pass == "approved"


def test_what_is_fixed_is_put_over_what_a_deployment_may_choose():
    merged = read("app.bicep")["resources"]["appSettings"]["config"]["properties"]["function"]
    assert merged["type"] == "union"
    assert list(merged["parameters"].values()) == ["defaults", "settings", "schedules", "disabled", "fixed"]


def test_nothing_is_set_that_flex_consumption_refuses():
    for name in (
        "FUNCTIONS_WORKER_RUNTIME",
        "FUNCTIONS_EXTENSION_VERSION",
        "WEBSITE_",
        "SCM_DO_BUILD",
        "linuxFxVersion",
        "TZ:",
    ):
        assert name not in text_of("app.bicep")


def test_every_timer_has_its_schedule_and_enough_time_before_somebody_is_told():
    timers = default("timers")
    assert {f"{name.upper()}_SCHEDULE" for name in timers} == set(SCHEDULES)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for name, timer in timers.items():
        moments = cron(timer["schedule"], start)
        periods = [later - before for before, later in pairwise(moments.get_next(datetime) for _ in range(50))]
        period = max(periods).total_seconds() / 60
        if name == "comparison":
            assert "alertAfterMinutes" not in timer
        elif period < 24 * 60:
            assert 3 * period <= timer["alertAfterMinutes"] <= 12 * period, name
        else:  # an alert sees two days, less the half hour that a pass may take
            assert 1.25 * period <= timer["alertAfterMinutes"] <= 48 * 60 - 30, name


def test_the_queues_are_those_that_functions_wait_for():
    container = value("main.bicep", "stateContainer")
    deployed = {name.replace("${stateContainer}", container) for name in value("storage.bicep", "queues")}
    triggers = re.findall(r'queue_name="(.*?)"', (REPOSITORY / "function_app.py").read_text())
    awaited = {name.replace("%STATE_CONTAINER%", container) for name in triggers}
    assert awaited and awaited <= deployed
    assert {name for name in deployed if not name.endswith("-poison")} == {
        name.removesuffix("-poison") for name in deployed if name.endswith("-poison")
    }


def test_what_is_deleted_by_age_is_records_and_nothing_that_the_code_goes_on_from():
    prefixes = set(re.findall(r"'\$\{stateContainer\}/(.*?)'", text_of("storage.bicep")))
    assert prefixes == {"syncs/${sync}/runs/", "syncs/${sync}/dead-letters/", "runs/"}
    assert value("storage.bicep", "keptDays") == 14
    beside = read("main.bicep")["modules"]["storage"]["config"]["params"]["syncs"]["function"]["parameters"]
    no_syncs = beside["expression"]["detail"]["expression"]["operator"]["operands"]["bool_value"]["function"][
        "parameters"
    ]
    assert set(default("timers")) - set(no_syncs["container"]) == {sync.name for sync in CATALOGUE}


def test_a_run_whose_record_was_the_first_to_be_deleted_by_age_holds_up_no_resume(deployment):
    runs = Runs(state := State(deployment.settings()))
    state.create()
    old, at_work = runs.create("resync", {}), runs.create("resync", {})
    for asked in (old, at_work):
        runs.change(asked.run, [Stage.PLANNING], state=Stage.RUNNING)
        runs.write_slices(asked.run, [{}])
    deployment.container.delete_blob(f"runs/{old.run}/run.json")
    assert Runs(state).running() == [at_work.run]
    state.close()


# --- secrets and roles ------------------------------------------------------------------------------------------------


def test_no_setting_holds_a_secret():
    secret = {
        setting_name(name)
        for name, field in Settings.model_fields.items()
        if field.annotation in (SecretStr, SecretStr | None) and setting_name(name) not in NOT_DEPLOYED
    }
    fixed = re.search(r"var fixed = \{(.*?)\n\}", text_of("app.bicep"), re.S)
    for name in secret:
        assert fixed and f"{name}: secrets.{name}\n" in fixed[1]
    references = value("main.bicep", "references")
    assert set(references) == set(value("main.bicep", "values")) == secret
    for name, one in references.items():
        choices = [one] if isinstance(one, str) else list(one["operator"]["operands"].values())[1:]
        for choice in choices:
            assert choice in ("", "keyless") or choice.startswith("@Microsoft.KeyVault(SecretUri=${vaultSecrets}/"), (
                name
            )
    for file in FILES:
        assert not re.search(r"(?i)listKeys|listConnectionStrings|AccountKey|PWD=|password\s*:", text_of(file)), file


def test_a_secret_that_is_given_to_a_deployment_is_never_shown():
    parameters = read("main.bicep")["parameters"]
    used = set(re.findall(r"\b(?:customerio\w*Key|sqlConnectionString)\b", text_of("main.bicep"))) & set(parameters)
    assert used == {"customerioApiKey", "customerioAppApiKey", "sqlConnectionString"}
    for name in used:
        assert {"type": "secure"} in parameters[name]["decorators"] and parameters[name]["default"] == ""
    assert {"type": "secure"} in read("app.bicep")["parameters"]["secrets"]["decorators"]
    for file in FILES:
        shown = [line for line in text_of(file).splitlines() if line.startswith("output ")]
        assert not [line for line in shown if re.search(r"(?i)key|secret|connection", line)], file


# https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
ROLES = {
    "Storage Blob Data Owner": "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
    "Storage Queue Data Contributor": "974c5e8b-45b9-4653-ba55-5f855dd0fb88",
    "Storage Table Data Contributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
    "Key Vault Secrets User": "4633458b-17de-408a-b874-0445c86b69e6",
    "Key Vault Secrets Officer": "b86a8fe4-44ce-4948-aee5-eccb2c155cd7",
    "Monitoring Metrics Publisher": "3913510d-42f4-4e42-8a64-420c390055eb",
}
# What the identity calls, and what it needs for that, where; none for what calls nothing by itself.
NEEDED = {
    "azure.storage.blob": ("Storage Blob Data Owner", "storage.bicep", "account"),
    "azure.storage.queue": ("Storage Queue Data Contributor", "storage.bicep", "account"),
    "the host's tables": ("Storage Table Data Contributor", "storage.bicep", "account"),
    "references to the vault": ("Key Vault Secrets User", "vault.bicep", "vault"),
    "azure-monitor-opentelemetry": ("Monitoring Metrics Publisher", "monitoring.bicep", "insights"),
    "azure.core": None,
    "azure.functions": None,
    "azure.identity": None,
}


def test_the_identity_may_do_what_the_code_does_at_the_narrowest_scope_and_nothing_else():
    called = set(re.findall(r"(?m)^\s*(?:from|import) (azure\.(?:storage\.\w+|\w+))", "\n".join(CODE.values())))
    assert called <= set(NEEDED), "somebody must say which role this needs"
    granted = set()
    for name, declared in resources():
        if declared["type"] == "Microsoft.Authorization/roleAssignments":
            file = name.partition(":")[0]
            one = body(declared)
            role = str(one["properties"]["roleDefinitionId"])
            ids = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", json.dumps(read(file)["variables"]) + role)
            operators = one["properties"]["principalId"] == "operatorPrincipalId"
            assert one["properties"]["principalType"] == ("operatorPrincipalType" if operators else "ServicePrincipal")
            assert not re.search(r"resourceGroup\(\)|subscription\(\)", str(one["scope"]))
            granted |= {(id, file, one["scope"]) for id in ids}
    needed = {(ROLES[one[0]], *one[1:]) for one in NEEDED.values() if one}
    assert granted == needed | {(ROLES["Key Vault Secrets Officer"], "vault.bicep", "vault")}


# --- alerts and workbook ----------------------------------------------------------------------------------------------

RUNBOOKS = {
    "pass-failing", "mark-old", "silence", "dead-letters", "stopped-before-sending", "drift", "reconciliation-off",
    "volume-outside", "freshness", "audit", "canary", "poison-slices", "throttled", "bound-frozen",
}  # fmt: skip
# The modules that note findings, and under which names; of a name that is put together, what it begins with.
NOTED = {
    "audit.py": {"audit-"},
    "canary.py": {"canary", "canary_cart"},
    "night.py": {"volume", "freshness", "census"},
    "reconcile.py": {"reconciliation"},
}


def rules() -> dict[str, Json]:
    return {rule["name"]: rule for rule in value("alerts.bicep", "rules")}


def queries() -> dict[str, str]:
    """All queries, by the rule or the item of the workbook."""
    found = {
        name: re.sub(r"\$\{findings\}", value("alerts.bicep", "findings"), one["query"])
        for name, one in rules().items()
    }
    for item in json.loads((BICEP / "workbook.json").read_text())["items"]:
        if "query" in item["content"]:
            found[f"workbook: {item['name']}"] = item["content"]["query"]
    return found


@pytest.mark.parametrize("name", sorted(queries()))
def test_a_query_asks_for_metrics_and_dimensions_that_the_code_tells(name):
    query = queries()[name]
    metrics = {one.name: one for one in METRICS}
    asked = set(re.findall(r"tidemark\.\w+", query))
    assert asked and asked <= set(metrics), name
    dimensions = {"sync", *(dimension for metric in asked for dimension in metrics[metric].dimensions)}
    assert set(re.findall(r'customDimensions(?:\.|\[")(\w+)', query)) <= dimensions
    assert query.startswith(("customMetrics", "let ", "limits")) and query.count("(") == query.count(")")
    assert not re.search(r"\bkind = ", query), "a word of the query language: no column can have its name"
    for outcome in re.findall(r'outcome (?:==|in) \(?("\w+"(?:, "\w+")*)', query):
        for one in outcome.split(", "):
            assert (
                one in CODE["run.py"] + CODE["passes.py"] + CODE["telemetry.py"] or one.strip('"') in METRICS[3].meaning
            )
    # A count has no largest value that means anything, a value no sum.
    kinds = {metrics[metric].kind for metric in asked}
    assert ("valueSum" not in query or "count" in kinds) and ("valueMax" not in query or "value" in kinds)


def test_every_check_has_an_alert_and_every_alert_a_check():
    asked: dict[str, set[str]] = {}
    for query in queries().values():
        for how, check in re.findall(r'check (==|startswith) "([\w-]+)"', query):
            asked.setdefault(check, set()).add(how)
    for module, code in CODE.items():
        if "findings.note(" in code:
            assert module in NOTED, "which checks are these?"
            for check in NOTED[module]:
                assert f'"{check}' + ("" if check.endswith("-") else '"') in code, f"{module} notes no {check}"
    checks = set[str]().union(*NOTED.values())

    def answers(check: str, how: set[str], noted: str) -> bool:
        return noted == check if how == {"=="} else noted.startswith(check)

    for check, how in asked.items():
        assert any(answers(check, how, noted) for noted in checks), f"nothing is found by {check}"
    for noted in checks:
        assert any(answers(check, how, noted) for check, how in asked.items()), f"nobody is told of {noted}"


def test_every_kind_of_stop_is_a_row_of_its_own():
    query = queries()["stopped-before-sending"]
    assert 'stop = tostring(customDimensions["kind"])' in query and "by sync, stop" in query
    stops = next(one for one in METRICS if one.name == "tidemark.stops")
    assert set(re.findall(r"`(\w+)`", stops.meaning)) == {"flood", "mass_change", "emptied"}


# https://learn.microsoft.com/azure/azure-monitor/alerts/alerts-create-log-alert-rule
FREQUENCIES = {"PT5M", "PT10M", "PT15M", "PT30M", "PT1H", "P1D"}
WINDOWS = FREQUENCIES | {"PT2H", "PT3H", "PT4H", "PT5H", "PT6H", "P2D"}


def test_every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on():
    assert set(rules()) == RUNBOOKS
    for name, rule in rules().items():
        assert rule["severity"] in (1, 2, 3), name
        assert rule["frequency"] in FREQUENCIES and rule["window"] in WINDOWS, name
        assert 80 < len(rule["text"]) < 400 and rule["text"].endswith("."), name
    alert = body(read("alerts.bicep")["resources"]["alert"])["properties"]
    page = "${repositoryUrl}/blob/main/docs/runbooks/${rule.name}.md"
    assert alert["description"].endswith(page) and alert["actions"]["customProperties"]["runbook"] == page
    assert alert["actions"]["actionGroups"] == ["actionGroupId"]


def test_every_alert_returns_the_sync_that_it_is_about():
    for name, query in queries().items():
        if name in RUNBOOKS:
            assert re.search(r"\bby sync\b|^limits\b", query), name
            assert (
                "arg_max(timestamp" not in query
                or query.rstrip().endswith("| project-away timestamp")
                or "| where check" in query
            )


def test_every_alert_has_its_page():
    folder = REPOSITORY / "docs" / "runbooks"
    if not folder.exists():
        pytest.skip("the runbooks are written by somebody else")
    assert {path.stem for path in folder.glob("*.md")} >= RUNBOOKS


def test_the_workbook_is_one_that_azure_can_show():
    workbook = json.loads((BICEP / "workbook.json").read_text())
    assert workbook["version"] == "Notebook/1.0"
    names = [item["name"] for item in workbook["items"]]
    assert len(names) == len(set(names)) > 8
    for item in workbook["items"]:
        if item["type"] == 3:
            assert item["content"]["timeContextFromParameter"] == "period"
            assert item["content"]["resourceType"] == "microsoft.insights/components"
            assert item["content"]["visualization"] in ("table", "barchart", "timechart")


# --- checkov ----------------------------------------------------------------------------------------------------------

SKIPPED = {
    "CKV_AZURE_13": "no sign-in of Azure's own: callers are scripts, each call needs a function key",
    "CKV_AZURE_17": "no client certificates: callers have function keys, over TLS",
    "CKV_AZURE_35": "the storage is open to the internet, under RBAC and without keys, unless privateNetwork",
    "CKV_AZURE_63": "read off app settings by mistake; and HTTP logs would hold ids of people, which stand in addresses",
    "CKV_AZURE_65": "read off app settings by mistake; detailed errors would be shown to who calls",
    "CKV_AZURE_66": "read off app settings by mistake; Flex Consumption has no request tracing",
    "CKV_AZURE_80": "read off app settings by mistake; there is no .NET here",
    "CKV_AZURE_88": "read off app settings by mistake; the package is in a blob container",
    "CKV_AZURE_109": "references in app settings do not resolve through a vault's firewall; it is under RBAC",
    "CKV_AZURE_189": "the same: the vault's endpoint is open, its secrets are not",
    "CKV_AZURE_206": "the redundancy is a parameter, whose value the scanner does not see: ZRS unless chosen otherwise",
    "CKV_AZURE_212": "Flex Consumption scales from zero; work is done by timers and queues",
    "CKV_AZURE_213": "Flex Consumption has no health checks of the app's own; the rule `silence` tells",
    "CKV_AZURE_222": "people call the app over the internet, with function keys",
    "CKV_AZURE_225": "a day without passes is made up for by the next one; zones double the least price",
}


@pytest.mark.slow
def test_checkov_reads_everything_and_finds_nothing_but_what_is_known():
    scanner = REPOSITORY / ".tools" / "checkov" / "bin" / "checkov"
    assert scanner.exists(), "make .tools/checkov/.ready"
    done = subprocess.run(
        [scanner, "-d", BICEP, "--framework", "bicep", "--skip-download", "-o", "json"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )
    report = json.loads(done.stdout)
    assert report["results"]["parsing_errors"] == []  # it ends well even if it could read nothing
    assert report["summary"]["resource_count"] >= len(list(resources()))
    scanned = {
        check["file_path"].lstrip("/")
        for kind in ("passed_checks", "failed_checks")
        for check in report["results"][kind]
    }
    assert scanned >= {"app.bicep", "storage.bicep", "vault.bicep"}
    assert {check["check_id"] for check in report["results"]["failed_checks"]} == set(SKIPPED)
