"""Settings: what is missing or wrong is said in one line each, and no secret is in it."""

import json
from pathlib import Path

import pytest

from shared.errors import ConfigurationFault
from shared.settings import Settings, load, setting_name

GOOD = {
    "SQL_CONNECTION_STRING": "Server=db;UID=reader;PWD=planted-secret",
    "CUSTOMERIO_REGION": "eu",
    "CUSTOMERIO_SITE_ID": "site",
    "CUSTOMERIO_API_KEY": "planted-secret",
    "AzureWebJobsStorage": "UseDevelopmentStorage=true",
    "STATE_CONTAINER": "tidemark",
}


@pytest.fixture
def load_with(monkeypatch: pytest.MonkeyPatch):
    for field in Settings.model_fields:
        monkeypatch.delenv(setting_name(field), raising=False)

    def load_with(**changes: str | None) -> Settings:
        for name, value in {**GOOD, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return load()

    return load_with


def test_good_settings_are_read_with_their_defaults(load_with):
    settings = load_with()
    assert settings.customerio_region == "eu"
    assert settings.first_pass == "approved"
    assert settings.time_budget_seconds == 25 * 60
    assert "planted-secret" not in repr(settings)


@pytest.mark.parametrize(
    "name",
    ["SQL_CONNECTION_STRING", "CUSTOMERIO_REGION", "CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "AzureWebJobsStorage"],
)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_setting_is_named(load_with, name, value):
    with pytest.raises(ConfigurationFault, match=name) as failure:
        load_with(**{name: value})
    assert "missing" in str(failure.value)
    assert "planted-secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SQL_CONNECTION_STRING", "planted-secret"),
        ("CUSTOMERIO_REGION", "mars"),
        ("CUSTOMERIO_REQUESTS_PER_SECOND", "0"),
        ("CUSTOMERIO_BATCHES_IN_FLIGHT", "many"),
        ("CUSTOMERIO_TRACK_URL", "https://track.example.com"),
        ("CUSTOMERIO_TRACK_URL", "http://127.0.0.1.example.com"),
        ("CUSTOMERIO_APP_URL", "http://10.0.0.7:8080"),
        ("CUSTOMERIO_APP_URL", "file:///etc/passwd"),
        ("SQL_TIME_ZONE", "W. Europe Standard Time"),
        ("SQL_TIME_ZONE", "../etc/passwd"),
        ("STATE_CONTAINER", "No_Such_Name"),
        ("FIRST_PASS", "yes"),
        ("PAGE_SIZE", "-1"),
        ("TIME_BUDGET_SECONDS", "1 h"),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(load_with, name, value):
    with pytest.raises(ConfigurationFault) as failure:
        load_with(**{name: value})
    message = str(failure.value)
    assert message.startswith(f"{name} is wrong: ")
    assert message.count("\n") == 0
    assert value not in message or value in ("0", "-1")


def test_every_fault_is_told_at_once(load_with):
    with pytest.raises(ConfigurationFault) as failure:
        load_with(CUSTOMERIO_REGION="mars", CUSTOMERIO_API_KEY=None)
    assert [line.split()[0] for line in str(failure.value).splitlines()] == ["CUSTOMERIO_REGION", "CUSTOMERIO_API_KEY"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://localhost:1/", "http://[::1]:99", "https://127.9.9.9"]
)
def test_a_loopback_address_may_stand_in_for_customerio(load_with, url):
    assert load_with(CUSTOMERIO_TRACK_URL=url).customerio_track_url == url.rstrip("/")


def test_the_example_settings_name_every_setting_and_no_other():
    values = json.loads(Path("local.settings.example.json").read_text())["Values"]
    schedules = {name for name in values if name.endswith("_SCHEDULE")}
    names = {setting_name(field) for field in Settings.model_fields}
    assert set(values) - schedules - {"FUNCTIONS_WORKER_RUNTIME"} == names


@pytest.mark.parametrize("part", ["TrustServerCertificate=yes", "encrypt = no", "Encrypt=Optional"])
def test_the_servers_certificate_is_checked_in_azure_whatever_the_connection_string_says(load_with, monkeypatch, part):
    text = f"{GOOD['SQL_CONNECTION_STRING']};{part}"
    assert load_with(SQL_CONNECTION_STRING=text).sql_connection_string.get_secret_value() == text
    monkeypatch.setenv("WEBSITE_SITE_NAME", "tidemark-prod")
    load_with(SQL_CONNECTION_STRING=f"{GOOD['SQL_CONNECTION_STRING']};Encrypt=strict")
    with pytest.raises(ConfigurationFault, match=part.split("=")[0].strip()) as failure:
        load_with(SQL_CONNECTION_STRING=text)
    assert "planted-secret" not in str(failure.value)
