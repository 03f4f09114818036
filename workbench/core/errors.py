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

import errno
from enum import StrEnum

__all__ = [
    "ContractError",
    "DataError",
    "ParameterError",
    "RecordError",
    "Refusal",
    "ServiceError",
    "StepFailed",
    "VerificationError",
    "Waiting",
    "WorkbenchError",
    "system_error",
]

_FREE = "Free some space there and run the same command again: finished steps are kept"
_LOCAL = "Put the workspace on a local disk: set WORKBENCH_HOME to a folder there"
_SYSTEM_ERRORS = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("your disk quota is used up", _FREE),
    errno.EFBIG: ("a file is larger than the file system or `ulimit -f` allows", "Raise the limit"),
    errno.EROFS: (
        "the file system is read-only",
        "Mount it writable, or set WORKBENCH_HOME to a folder that is",
    ),
    errno.EIO: (
        "the disk reports an error",
        "Look at the system's log (dmesg). `workbench doctor --records` names what is damaged; "
        "restore it from a backup",
    ),
    errno.ESTALE: ("the network file system lost a file", "Mount it again, then run this again"),
    errno.ENOLCK: ("the file system does not support locks", _LOCAL),
    errno.ENOTSUP: ("the file system does not support what is needed", _LOCAL),
    errno.EMLINK: ("the file system allows no more links to a file", _LOCAL),
    errno.EXDEV: ("two folders that must be on one disk are not", _LOCAL),
    errno.EMFILE: ("this process has too many files open", "Raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("the system has too many files open", "Close programs, or raise fs.file-max"),
    errno.ENOMEM: ("the system has no memory left", "Close programs, or use a larger machine"),
    errno.EACCES: ("no permission", "Use the user who owns the workspace, or correct the modes"),
    errno.EPERM: ("not permitted", "Use the user who owns the workspace, or correct the modes"),
    errno.ENAMETOOLONG: ("a file name is too long", "Use a shorter name"),
    errno.ELOOP: ("links that lead in a circle", "Remove the link"),
    errno.ENOENT: ("no such file or folder", "It was removed meanwhile? Run this again"),
    errno.ENOTDIR: ("part of the path is a file, not a folder", "Correct it, or WORKBENCH_HOME"),
    errno.EISDIR: ("a folder lies where a file should be", "Move it away, then run this again"),
    errno.ETXTBSY: ("the file is in use", "Wait until it is free, then run this again"),
    errno.EBUSY: ("the file is in use", "Wait until it is free, then run this again"),
}


class Refusal(StrEnum):
    """Stable code of why evidence was refused; docs/how-to/releases.md explains each.

    A code is never renamed: people search logs for them.
    """

    UNSIGNED = "unsigned"
    SIGNATURE_INVALID = "signature-invalid"
    WRONG_KEY = "wrong-key"
    KEY_EXPIRED = "key-expired"
    KEY_REVOKED = "key-revoked"
    KEYRING_CHANGED = "keyring-changed"
    FILE_CHANGED = "file-changed"
    FILE_EXTRA = "file-extra"
    FILE_MISSING = "file-missing"
    UNSAFE_FILE = "unsafe-file"
    OTHER_RELEASE = "other-release"
    NOT_PROMOTED = "not-promoted"
    GATES_OTHER_BUNDLE = "gates-other-bundle"
    GATES_OTHER_DATASET = "gates-other-dataset"
    GATES_EDITED = "gates-edited"
    GATES_STALE = "gates-stale"
    INCIDENT_NOT_JUDGED = "incident-not-judged"
    INCIDENT_MISSING = "incident-missing"
    INCIDENT_FRAME_CHANGED = "incident-frame-changed"
    INCIDENT_FRAME_MISSING = "incident-frame-missing"
    FRAME_HELD_OUT = "frame-held-out"
    HOLDOUT_SPENT = "holdout-spent"
    HOLDOUT_RESET = "holdout-reset"
    LICENCE_FORBIDS = "licence-forbids"
    WAIVER_EXPIRED = "waiver-expired"
    CLAIM_INVALID = "claim-invalid"
    REGISTRY_DIFFERS = "registry-differs"
    LOG_CHANGED = "log-changed"
    LOG_TRUNCATED = "log-truncated"
    LOG_FORKED = "log-forked"
    RECORD_CHANGED = "record-changed"
    UNSAFE_ARCHIVE = "unsafe-archive"
    PACK_VERSION = "pack-version"
    PACK_STALE = "pack-stale"


class WorkbenchError(Exception):
    """Base class of all expected errors.

    Args:
        what: What is wrong, without a full stop.
        where: The file, record, parameter or server concerned.
        hint: What to do next.
        reason: Stable code, where evidence was refused.

    Attributes:
        exit_code: Exit status of the command line.
        kind: Name of the error in ``--json`` output.
    """

    exit_code = 1
    kind = "error"

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        hint: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        self.reason = reason

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        hint = f". {self.hint}" if self.hint else ""
        return f"{self.what}{where}{hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # The default would lose the keyword-only arguments when an error is pickled.
        return _rebuild_error, (type(self), self.what, self.where, self.hint, self.reason)


def _rebuild_error(
    kind: type[WorkbenchError],
    what: str,
    where: str | None,
    hint: str | None,
    reason: str | None,
) -> WorkbenchError:
    return kind(what, where=where, hint=hint, reason=reason)


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


def system_error(error: OSError) -> WorkbenchError:
    """What the operating system refused, in words, with what to do about it."""
    what, hint = _SYSTEM_ERRORS.get(error.errno or 0, (None, None))
    return _SystemError(
        what or f"the system refused: {error.strerror or error}",
        where=error.filename or error.filename2,
        hint=hint,
    )


class _SystemError(WorkbenchError):
    kind = "system"
