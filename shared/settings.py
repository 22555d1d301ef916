"""The settings, read from the environment (Azure's app settings, or `Values` of local.settings.json)."""

import os
import re
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import ConfigurationFault


def _loopback(url: str) -> str:
    """Credentials go to Customer.io's own hosts only; a stand-in may take their place on this machine."""
    parts = urlsplit(url)
    try:
        local = parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = False
    if not local or parts.scheme not in ("http", "https"):
        raise ValueError(
            "may only name a loopback address such as http://127.0.0.1:8080; leave it out to use Customer.io"
        )
    return url.rstrip("/")


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("must be an IANA time zone such as UTC or Europe/Berlin") from error
    return name


def _names_a_server(text: SecretStr) -> SecretStr:
    if not re.search(r"(?i)(^|;)\s*(server|addr|address|network address|dsn)\s*=\s*[^;\s]", text.get_secret_value()):
        raise ValueError("must be an ODBC connection string such as Server=name,1433;Database=shop;UID=...;PWD=...")
    return text


def _names(text: object) -> object:
    return [name.strip() for name in text.split(",") if name.strip()] if isinstance(text, str) else text


def _segments(text: object) -> object:
    if not isinstance(text, str):
        return text
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    wrong = not all(re.fullmatch(r"[a-z0-9_]+", name.strip()) and id.strip().isdecimal() for name, _, id in pairs)
    if wrong or len({name.strip() for name, _, _ in pairs}) < len(pairs):
        raise ValueError("must be names of views without segment_, each with one segment's id: vip=12, repeat=7")
    return {name.strip(): int(id) for name, _, id in pairs}


def _no_identifiers(names: frozenset[str]) -> frozenset[str]:
    if never := sorted(names & {"id", "cio_id", "email", "customer_id", "unsubscribed"}):
        raise ValueError(
            f"names {', '.join(never)}: an identifier is never cleared, nor is a consent. Take it off the list"
        )
    return names


ConnectionString = Annotated[SecretStr, AfterValidator(_names_a_server)]
LoopbackUrl = Annotated[str, AfterValidator(_loopback)]
ZoneName = Annotated[str, AfterValidator(_zone)]
Segments = Annotated[dict[str, int], NoDecode, BeforeValidator(_segments)]
Names = Annotated[frozenset[str], NoDecode, BeforeValidator(_names)]


class Settings(BaseSettings):
    """Everything that a deployment sets. A field's name in capitals is the setting's name, unless it has an alias."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    sql_connection_string: ConnectionString = Field(
        description="ODBC connection string of the database. Without `Driver=` the newest Microsoft driver is taken."
    )
    sql_time_zone: ZoneName = Field(
        "UTC", description="IANA zone of `date`, `datetime` and `datetime2` columns, which have none of their own."
    )
    customerio_region: Literal["us", "eu"] = Field(description="Region of the Customer.io account: `us` or `eu`.")
    customerio_site_id: str = Field(description="Site id of the Track API credentials.")
    customerio_api_key: SecretStr = Field(description="API key of the Track API credentials.")
    customerio_app_api_key: SecretStr | None = Field(
        None,
        description="Key of the App API, to look up what is really there. `merges` needs it; with it, what passes have"
        " sent is audited.",
    )
    customerio_track_url: LoopbackUrl | None = Field(
        None, description="A stand-in for the Track API; loopback addresses only."
    )
    customerio_app_url: LoopbackUrl | None = Field(
        None, description="A stand-in for the App API; loopback addresses only."
    )
    customerio_requests_per_second: int = Field(
        100, ge=1, le=1000, description="The most requests a second that one pass sends to Customer.io."
    )
    customerio_batches_in_flight: int = Field(
        4, ge=1, le=32, description="How many batches one pass has on their way at once."
    )
    azure_web_jobs_storage: SecretStr | None = Field(
        None,
        alias="AzureWebJobsStorage",
        description="Connection string of the storage account that holds the state; in Azure rather use the next.",
    )
    storage_account_name: str | None = Field(
        None,
        alias="AzureWebJobsStorage__accountName",
        description="Name of the storage account, reached by managed identity.",
    )
    storage_client_id: str | None = Field(
        None,
        alias="AzureWebJobsStorage__clientId",
        description="Client id of the user-assigned identity; left out, the system-assigned one is used.",
    )
    state_container: str = Field(
        pattern=r"^[a-z0-9](?:-?[a-z0-9]){2,46}$",
        description="Blob container of the marks, ledgers, dead letters and run records; the queues have its name.",
    )
    first_pass: Literal["approved", "all"] = Field(
        "approved",
        description="`approved`: a sync without a mark sends nothing. `all`: it starts at the beginning (local only).",
    )
    page_size: int = Field(5000, ge=10, le=50_000, description="Rows per page: the unit of memory and of accounting.")
    lookback_seconds: int = Field(
        600,
        ge=60,
        le=86_400,
        description="How long after its `updated_at` a row may be committed (`row_version` needs no such setting).",
    )
    clear_when_null: Annotated[Names, AfterValidator(_no_identifiers)] = Field(
        frozenset(),
        description="Attributes that NULL removes from the person, with commas between. Any other NULL leaves what"
        " Customer.io holds alone.",
    )
    json_columns: Names = Field(
        frozenset(),
        description="Columns, with commas between, whose text is JSON and is sent as nested values; elsewhere JSON is"
        " refused.",
    )
    sql_owns_consent: bool = Field(
        False,
        description="Whether `unsubscribed` false is sent too, and so subscribes people again who unsubscribed at"
        " Customer.io.",
    )
    mass_change_percent: int = Field(
        5,
        ge=1,
        le=100,
        description="A pass of `customers` that would touch more than this share of all people (and 1,000 at least)"
        " stops before it sends.",
    )
    emptied_percent: int = Field(
        20,
        ge=1,
        le=100,
        description="A pass of `customers` stops where the share of rows of a large page in which an attribute is NULL,"
        " zero or false is by so many points higher than in the first pass.",
    )
    vanished_customers: Literal["report", "clear", "delete"] = Field(
        "report",
        description="What the nightly comparison does about a customer that is no longer in `retention.customers`: tell"
        " it, clear the attributes of VANISHED_CLEAR, or delete the person, who then does not come back.",
    )
    vanished_clear: Annotated[Names, AfterValidator(_no_identifiers)] = Field(
        frozenset(),
        description="Attributes that are removed from a customer that has vanished, with commas between, where"
        " VANISHED_CUSTOMERS is `clear`.",
    )
    dead_letter_days: int = Field(
        30, ge=1, le=365, description="Dead letters that were not seen again for so many days are dropped."
    )
    resync_slice_rows: int = Field(
        50_000, ge=100, le=1_000_000, description="Rows that one slice of a resync has, roughly."
    )
    resync_slices_in_flight: int = Field(
        4,
        ge=1,
        le=40,
        description="How many slices of a resync are at work at once; they share CUSTOMERIO_REQUESTS_PER_SECOND.",
    )
    approval_people: int = Field(
        1000,
        ge=0,
        description="A resync that touches more people than these waits for approval, whatever the age of its events.",
    )
    qa_strata: Names = Field(
        frozenset(),
        description="Columns of `retention.customers`, with commas between, over whose values a QA sync spreads the"
        " people that it picks. Left out: those that there are of orders_count, last_order_at, subscription_status,"
        " refund_flag and vip_tier.",
    )
    qa_wait_seconds: int = Field(
        180,
        ge=0,
        le=1200,
        description="Until then what Customer.io does not show yet is no difference to a QA sync; then it is. An audit"
        " looks after a third of it, then once more after it, and last after three times as long.",
    )
    segments: Segments = Field(
        default_factory=dict,
        description="Which segment of Customer.io a view `retention.segment_<name>` is compared with, by name and id,"
        " with commas between: `canary_repeat_recent=7, vip=12`.",
    )
    reconciliation_tolerance_percent: float = Field(
        0.5,
        ge=0,
        le=100,
        description="By so much of the SQL count a segment may differ before its members are compared one by one.",
    )
    audit_people: int = Field(
        20,
        ge=0,
        le=100,
        description="Of so many people that a pass has sent, at most, what Customer.io holds is read back; 0 for none.",
    )
    canary_customer_id: str | None = Field(
        None, description="The id of a test person, who is nobody's customer, to whom the canary's events are sent."
    )
    canary_campaign: int | None = Field(
        None, description="Id of the campaign that Order Placed starts for the canary person, and nobody else."
    )
    canary_cart_campaign: int | None = Field(
        None, description="Id of the campaign that Cart Abandoned starts for the canary person and Order Placed ends."
    )
    alert_action_group: str | None = Field(
        None, description="Resource id of the action group that the alerts call. The deployment sets it."
    )
    time_budget_seconds: int = Field(
        1500, ge=1, le=1740, description="After this a pass ends at the next page; the next pass goes on from there."
    )


def load() -> Settings:
    """Read the settings. Raises ConfigurationFault with one line for each setting that is missing or wrong."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # the environment fills it
    except ValidationError as error:
        raise ConfigurationFault(_explain(error)) from None
    if not settings.azure_web_jobs_storage and not settings.storage_account_name:
        raise ConfigurationFault(
            "AzureWebJobsStorage is missing: set it to a connection string, or set AzureWebJobsStorage__accountName"
            " to reach the account by managed identity."
        )
    if settings.vanished_customers == "clear" and not settings.vanished_clear:
        raise ConfigurationFault(
            "VANISHED_CLEAR is missing: VANISHED_CUSTOMERS is clear, so name the attributes that are to be cleared."
        )
    unchecked = re.search(
        r"(?i)(^|;)\s*(TrustServerCertificate\s*=\s*(yes|true|1)|Encrypt\s*=\s*(no|false|optional|0))\s*(;|$)",
        settings.sql_connection_string.get_secret_value(),
    )
    if unchecked and "WEBSITE_SITE_NAME" in os.environ:  # Azure sets it
        raise ConfigurationFault(
            f"SQL_CONNECTION_STRING says {unchecked[2]}, so nobody checks who the server is. That is for a development"
            " machine only: leave it out, and use the server's full name."
        )
    return settings


def is_disabled(function: str) -> bool:
    """Whether Azure's own setting, AzureWebJobs.<function>.Disabled, switches a function off."""
    return os.environ.get(f"AzureWebJobs.{function}.Disabled", "").lower() in ("1", "true")


def setting_name(field: str) -> str:
    """The name under which a field of Settings is set."""
    return Settings.model_fields[field].alias or field.upper()


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        # pydantic reports an aliased field under its alias
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        name = setting_name(name) if name in Settings.model_fields else name
        if problem["type"] == "missing":
            reason = "is missing. Set it in the app settings (locally: Values in local.settings.json)."
        else:
            reason = "is wrong: " + problem["msg"].removeprefix("Value error, ") + "."
        lines.append(f"{name} {reason}")
    return "\n".join(lines)
