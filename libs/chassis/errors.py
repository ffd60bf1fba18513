"""One tree of errors; `rpc` maps it to gRPC once.

SightlineError
├── InvalidRequest     INVALID_ARGUMENT
├── TooLarge           RESOURCE_EXHAUSTED
├── Unauthenticated    UNAUTHENTICATED
├── Forbidden          PERMISSION_DENIED
├── NotFound           NOT_FOUND
├── AlreadyExists      ALREADY_EXISTS
├── WrongState         FAILED_PRECONDITION
├── Changed            ABORTED
└── Unavailable        UNAVAILABLE: nothing is known to have changed, the caller repeats
PoisonError            a Kafka record that can never be handled: to the DLQ
Misconfigured          the process cannot run like this; the text says what to change
"""

from collections.abc import Mapping
from enum import Enum

from sightline.common.v1.error_reason_pb2 import ErrorReason

REASON_PREFIX = "ERROR_REASON_"


class Code(Enum):
    """gRPC status names, so that this module does not import gRPC."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class SightlineError(Exception):
    """A refusal with a documented reason. `message` is shown to the caller and says what to do."""

    code = Code.INTERNAL

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = ErrorReason.Name(reason).removeprefix(REASON_PREFIX)
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = dict(violations or {})


class InvalidRequest(SightlineError):
    """The request can never succeed as it is."""

    code = Code.INVALID_ARGUMENT


class TooLarge(SightlineError):
    """The request is over a size limit."""

    code = Code.RESOURCE_EXHAUSTED


class Unauthenticated(SightlineError):
    """The caller did not prove who it is."""

    code = Code.UNAUTHENTICATED


class Forbidden(SightlineError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class NotFound(SightlineError):
    """There is no such thing, or not for this caller."""

    code = Code.NOT_FOUND


class AlreadyExists(SightlineError):
    """There is such a thing already, with other content."""

    code = Code.ALREADY_EXISTS


class WrongState(SightlineError):
    """The thing is not in a state that allows this."""

    code = Code.FAILED_PRECONDITION


class Changed(SightlineError):
    """The thing changed since the caller looked."""

    code = Code.ABORTED


class Unavailable(SightlineError):
    """It could not be done now; the same request may be sent again."""

    code = Code.UNAVAILABLE


class PoisonError(Exception):
    """A record that can never be handled, however often it is tried."""


class Misconfigured(Exception):
    """Something around the process is set up wrongly; waiting does not help."""
