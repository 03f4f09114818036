"""All expected errors.

    WorkbenchError
    ├── ParameterError    an argument is invalid; nothing was started
    ├── DataError         input cannot be used at all (single bad frames are quarantined)
    ├── RecordError       a record is missing, incomplete or does not match its digest
    ├── ContractError     a step violates the contract that it declares
    ├── ServiceError      a server cannot be reached or answered with an error
    ├── StepFailed        a notebook raised an exception, was killed or timed out
    ├── VerificationError a signature or digest does not match
    └── Waiting           not a failure: people have to act before the step can continue

Each error says what is wrong, where, and what to do next: often the message is all that the
engineer on call sees.
"""

from __future__ import annotations

__all__ = [
    "ContractError",
    "DataError",
    "ParameterError",
    "RecordError",
    "ServiceError",
    "StepFailed",
    "VerificationError",
    "Waiting",
    "WorkbenchError",
]


class WorkbenchError(Exception):
    """Base class of all expected errors.

    Args:
        what: What is wrong, without a full stop.
        where: The file, record, parameter or server concerned.
        hint: What to do next.

    Attributes:
        exit_code: Exit status of the command line.
        kind: Name of the error in ``--json`` output.
    """

    exit_code = 1
    kind = "error"

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        hint = f". {self.hint}" if self.hint else ""
        return f"{self.what}{where}{hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # The default would lose the keyword-only arguments when an error is pickled.
        return _rebuild_error, (type(self), self.what, self.where, self.hint)


def _rebuild_error(
    kind: type[WorkbenchError], what: str, where: str | None, hint: str | None
) -> WorkbenchError:
    return kind(what, where=where, hint=hint)


class ParameterError(WorkbenchError):
    """An argument is invalid; nothing was started."""

    exit_code = 2
    kind = "parameter"


class DataError(WorkbenchError):
    """Input that cannot be used at all."""

    kind = "data"


class RecordError(WorkbenchError):
    """A record is missing, incomplete or does not match its digest."""

    kind = "record"


class ContractError(WorkbenchError):
    """A step violates the contract that it declares."""

    kind = "contract"


class ServiceError(WorkbenchError):
    """A server cannot be reached or answered with an error."""

    kind = "service"


class StepFailed(WorkbenchError):
    """A notebook raised an exception, was killed or timed out."""

    kind = "step"


class VerificationError(WorkbenchError):
    """A signature or digest does not match."""

    kind = "verification"


class Waiting(WorkbenchError):
    """Not a failure: people have to act before the step can continue."""

    exit_code = 4
    kind = "waiting"
