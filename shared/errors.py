"""Every failure that Tidemark raises, grouped by what the runner must do about it.

    TidemarkError
    ├── StopRun               a person must act; trying again changes nothing
    │   ├── ConfigurationFault   a setting is missing or wrong
    │   ├── CredentialFault      SQL Server or Customer.io refuses the credentials
    │   ├── ViewFault            a view breaks the contract
    │   │   └── SurgeStop           a pass would touch too many people, or empties an attribute for many
    │   └── StateFault           the state in the blobs is missing, foreign or damaged
    ├── TryLater              passing trouble that outlived its retries; the next pass goes on from the mark
    │   ├── SourceUnavailable
    │   ├── DeliveryUnavailable
    │   └── StateUnavailable
    └── CarryOn               nothing is wrong; this invocation has nothing to do
        ├── Busy                 another pass of this sync is at work
        ├── NotLive              the sync's going live was not approved
        ├── Paused               a person has stopped this sync, or all
        ├── Waiting              a full comparison stands in for this pass
        ├── NotThere             what was asked for does not exist
        ├── WrongRequest         what was asked for does not fit the views
        └── Refused              what was asked for is not done that way

A row or an operation that can never be delivered is no exception at all: it is set aside as a dead letter (see passes).

A message names the setting, view, column or blob and what to do. It never holds a value from a row, nor a secret.
"""


class TidemarkError(Exception):
    """Base of everything that Tidemark raises on purpose."""


class StopRun(TidemarkError):
    """A person must act first."""


class ConfigurationFault(StopRun):
    """A setting is missing or wrong."""


class CredentialFault(StopRun):
    """The other side refuses the credentials."""


class ViewFault(StopRun):
    """A view breaks the contract."""


class SurgeStop(ViewFault):
    """A pass would touch too many people, or empties an attribute for many."""


class StateFault(StopRun):
    """The state is missing, foreign or damaged."""


class TryLater(TidemarkError):
    """Passing trouble that outlived its retries."""


class SourceUnavailable(TryLater):
    """SQL Server does not answer, or keeps failing."""


class DeliveryUnavailable(TryLater):
    """Customer.io does not answer, or keeps failing."""


class StateUnavailable(TryLater):
    """Blob storage does not answer, or keeps failing."""


class CarryOn(TidemarkError):
    """Nothing is wrong, and nothing is to be done."""


class Busy(CarryOn):
    """Another pass of this sync holds its lease."""


class NotLive(CarryOn):
    """The sync has no mark: going live was not approved."""


class Paused(CarryOn):
    """A person has paused this sync, or all."""


class Waiting(CarryOn):
    """A full comparison stands in for this pass."""


class NotThere(CarryOn):
    """What was asked for does not exist."""


class WrongRequest(CarryOn):
    """What was asked for does not fit the views; the message names the field of the request."""


class Refused(CarryOn):
    """What was asked for is not done that way."""
