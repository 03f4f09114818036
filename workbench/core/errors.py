"""Everything that can go wrong, as one small tree.

    WorkbenchError
    ├── ParameterError    a value the caller gave is wrong; nothing was started
    ├── DataError         input that cannot be used at all (single bad frames are quarantined)
    ├── RecordError       a record is missing, incomplete or does not match its digest
    ├── ContractError     a step did not keep what its contract declares
    ├── ServiceError      a server is away or answered with an error
    ├── StepFailed        a notebook raised, died or ran out of time
    ├── VerificationError a signature or a digest does not hold
    └── Waiting           not a failure: people have to act before the step can go on

Each carries what was wrong, where, and what to do next, because the message is often all
that the engineer on call gets to see.
"""

from __future__ import annotations


class WorkbenchError(Exception):
    """Base of all expected errors.

    Args:
        what: What was wrong, as a sentence without a full stop.
        where: The file, record, parameter or server it concerns.
        hint: What to do next.
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
        # Keyword-only fields would be lost when an error crosses a process boundary.
        return _rebuild_error, (type(self), self.what, self.where, self.hint)


def _rebuild_error(
    kind: type[WorkbenchError], what: str, where: str | None, hint: str | None
) -> WorkbenchError:
    return kind(what, where=where, hint=hint)


class ParameterError(WorkbenchError):
    exit_code = 2
    kind = "parameter"


class DataError(WorkbenchError):
    kind = "data"


class RecordError(WorkbenchError):
    kind = "record"


class ContractError(WorkbenchError):
    kind = "contract"


class ServiceError(WorkbenchError):
    kind = "service"


class StepFailed(WorkbenchError):
    kind = "step"


class VerificationError(WorkbenchError):
    kind = "verification"


class Waiting(WorkbenchError):
    """People have to act first. ``done`` of ``total`` pieces of work are in."""

    exit_code = 4
    kind = "waiting"
