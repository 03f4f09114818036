"""The audit log: one line an event, each with the digest of the line before.

``audit/log.jsonl`` is only appended to, by the functions that do what an entry says. The number and
digest of the last line are signed and kept apart, in ``audit-checkpoint/`` and at the path that
``WORKBENCH_AUDIT_CHECKPOINT`` names, which may be on another machine. So an edited, removed or
reordered line breaks the chain, and a truncated log is shorter than its checkpoint. The checkpoint
is written first and has the line, so a process that is killed loses none.

Someone with the signing key can write another history. They cannot change a copy of a checkpoint.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from workbench.core import digest
from workbench.core.errors import ParameterError, Refusal, VerificationError, WorkbenchError
from workbench.core.keyring import signing_key, usable_keys
from workbench.core.names import check_person
from workbench.core.signatures import check_reference, sign_reference
from workbench.core.types import Json
from workbench.core.workspace import Workspace, exclusive, write_atomic
from workbench.records.base import FrozenModel, Ref

__all__ = ["CHECKPOINT_VARIABLE", "LogEntry", "append", "read_log", "verify_log"]

CHECKPOINT_VARIABLE = "WORKBENCH_AUDIT_CHECKPOINT"
"""Environment variable with the path of a second copy of the checkpoint."""

Event = Literal[
    "ingested",
    "frames-read",
    "labelled",
    "withdrew",
    "trained",
    "judged",
    "waived",
    "claimed",
    "released",
    "rolled-back",
    "registry-rebuilt",
    "promoted",
    "alias-moved",
    "rollout",
    "key-rotated",
    "key-revoked",
    "packed",
    "alarm",
    "campaign",
    "incident-added",
    "incident-retired",
    "holdout-opened",
    "holdout-asked",
    "holdout-answered",
]
"""``frames-read``: images were handed to people, with ``why``. ``rollout``: an event of a fleet's
rollout, with its ``action``. ``claimed``: a signed claim was added to a release. ``alarm``: one of
the fleet's monitoring was raised, accepted, dismissed or retrained for, as ``action`` says.
``campaign``: frames were asked of vehicles, or no longer, likewise."""

_START = "0" * 64  # digest before the first line
_PURPOSE = "audit checkpoint"
_LOCK_TIMEOUT_S = 30
_MAX_PROBLEMS = 20


class LogEntry(FrozenModel):
    """One event.

    Attributes:
        number: Position in the log, counted from 1.
        at: ISO 8601 time in UTC, from this machine's clock.
        by: Who did it.
        subjects: References of the records concerned.
        detail: What else matters, in a few words or numbers.
        previous: Digest of the line before.
    """

    schema_version: Literal[1] = 1
    number: int
    at: str
    event: Event
    by: str
    subjects: tuple[Ref, ...]
    detail: Json = {}
    previous: str


@dataclass(frozen=True)
class LogReport:
    """Result of `verify_log`.

    Attributes:
        checkpoint: The entry up to which the log is signed.
        reason: Stable code of the first problem.
    """

    entries: int
    checkpoint: int
    problems: tuple[str, ...]
    reason: str | None = None


def append(
    workspace: Workspace,
    event: Event,
    *,
    subjects: tuple[Ref, ...],
    by: str | None = None,
    **detail: Any,
) -> LogEntry:
    """Append an entry and sign a checkpoint. Called by what does it, not by its callers.

    Args:
        by: Who does it; the account that runs the process by default.
        subjects: The records concerned.
        detail: Plain data.

    Raises:
        VerificationError: The log is shorter than its checkpoint, or its last line was changed.
        WorkbenchError: The log cannot be written.
    """
    if event not in get_args(Event):
        raise ParameterError(f"unknown event {event!r}")
    signing_key(workspace, "log")  # generates it, or says why it cannot be used
    with _locked(workspace):
        path = _log_path(workspace)
        signed = _checkpoint(workspace)
        if signed is not None:
            _cut_unfinished(path, signed.line)
        number, last = _end_of(path)
        if signed is not None and number == signed.number - 1 and signed.follows(last):
            _append_line(path, signed.line)  # of a process that was killed
            number, last = signed.number, signed.digest
        if signed is not None and (number, last) != (signed.number, signed.digest):
            raise VerificationError(
                f"the audit log ends at entry {number}, its checkpoint is entry {signed.number}",
                where=path,
                hint="`workbench audit verify` names what is wrong; restore it from a backup",
                reason=Refusal.LOG_TRUNCATED if number < signed.number else Refusal.LOG_CHANGED,
            )
        entry = LogEntry(
            number=number + 1,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            event=event,
            by=check_person(by or _account(), "name of who did it"),
            subjects=subjects,
            detail=detail,
            previous=last,
        )
        line = digest.canonical_json(entry.model_dump(mode="json"))
        name = f"{entry.number}/{digest.of_bytes(line)}"
        try:
            _write_checkpoint(workspace, name, line)
            _append_line(path, line)
        except OSError as error:
            raise WorkbenchError(
                f"audit log cannot be written: {error.strerror}",
                where=error.filename or path,
                hint="Free space or correct permissions, then try again",
            ) from error
    return entry


def _append_line(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = line + b"\n"
    with path.open("ab", buffering=0) as stream:  # a buffer would be written again when it closes
        size = path.stat().st_size
        try:
            while rest:
                rest = rest[stream.write(rest) :]
            os.fsync(stream.fileno())
        except OSError:  # such as a full disk: a part of the line may be there
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def _cut_unfinished(path: Path, signed: bytes) -> None:
    """Remove a last line without its end that is a part of the signed one, which is then written.

    A full disk or a power cut leaves it. Anything else that stands there is left as evidence.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        start = max(0, size - len(signed) - 1)
        stream.seek(start)
        tail = stream.read()
    _, end_of_line, rest = tail.rpartition(b"\n")
    if rest and signed.startswith(rest) and (end_of_line or not start):
        os.truncate(path, size - len(rest))


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid-{os.getuid()}"


def read_log(
    workspace: Workspace,
    of: Ref | None = None,
    damaged: list[str] | None = None,
    *,
    events: Collection[str] = (),
) -> Iterator[LogEntry]:
    """The entries, oldest first; with ``of`` only those about a record. Not verified.

    Args:
        workspace: With the log.
        of: Only entries about this record.
        damaged: Gets a sentence for each line that cannot be read, which is then left out.
        events: Only entries of these kinds; other lines are not parsed, which is fast.

    Raises:
        VerificationError: A line cannot be read, and ``damaged`` is not given.
    """
    path = _log_path(workspace)
    wanted = [f'"event":"{event}"'.encode() for event in events]
    for number, line in enumerate(_lines(path), start=1):
        if wanted and not any(one in line for one in wanted):
            continue
        try:
            entry = LogEntry.model_validate_json(line)
        except ValidationError as error:
            problem = f"line {number} of the audit log cannot be read"
            if damaged is None:
                hint = "`workbench audit verify` lists all that is wrong"
                raise VerificationError(problem, where=path, hint=hint) from error
            damaged.append(problem)
            continue
        if (of is None or of in entry.subjects) and (not events or entry.event in events):
            yield entry


def export(workspace: Workspace) -> dict[str, bytes]:
    """The log and its checkpoint, by file name, for whoever verifies elsewhere.

    Raises:
        VerificationError: The log was changed.
    """
    with _locked(workspace):
        _require_unchanged(workspace)
        own = _checkpoint_paths(workspace)[0]
        return {"log.jsonl": _log_path(workspace).read_bytes(), "checkpoint.json": own.read_bytes()}


def verify_log(workspace: Workspace) -> LogReport:
    """Check the chain of the log and its signed checkpoint.

    Raises:
        VerificationError: There is a log, but no key to verify its checkpoint with.
    """
    problems: list[str] = []
    previous, digests = _START, [_START]
    for number, line in enumerate(_lines(_log_path(workspace)), start=1):
        try:
            body = json.loads(line)
            found, claimed = body["number"], body["previous"]
        except (ValueError, TypeError, KeyError, RecursionError):
            found, claimed = None, previous
            problems.append(f"entry {number} cannot be read")
        if found is not None and found != number:
            problems.append(f"entry {number} says that it is entry {found}: removed or reordered")
        if claimed != previous:
            problems.append(f"entry {number - 1} was changed, removed or reordered")
        previous = digest.of_bytes(line)
        digests.append(previous)
    entries = len(digests) - 1
    reason: str | None = Refusal.LOG_CHANGED if problems else None
    try:
        checkpoints = _checkpoints(workspace)
    except VerificationError as error:
        return LogReport(entries, 0, (*problems[:_MAX_PROBLEMS], error.what), error.reason)
    for signed in checkpoints:
        found, code = _compare(signed, digests, several=len(checkpoints) > 1)
        if found not in problems:
            problems += [found] if found else []
            reason = reason or code
    last = checkpoints[-1].number if checkpoints else 0
    if last < entries:
        problems.append(
            f"entries after {last} are not signed" if last else "there is no checkpoint"
        )
        reason = reason or Refusal.LOG_CHANGED
    return LogReport(entries, last, tuple(problems[:_MAX_PROBLEMS]), reason)


def _compare(
    signed: _Checkpoint, digests: list[str], *, several: bool
) -> tuple[str, Refusal | None]:
    """What a checkpoint says about the log that is wrong, or an empty text."""
    entries = len(digests) - 1
    if signed.number > entries:
        missing = f"entries {entries + 1} to {signed.number} are missing"
        return f"{missing}: the log was truncated", Refusal.LOG_TRUNCATED
    if digests[signed.number] != signed.digest:
        problem = f"entry {signed.number} is not the one that was signed"
        if several:
            return f"{problem}: two histories were signed", Refusal.LOG_FORKED
        return problem, Refusal.LOG_CHANGED
    return "", None


@dataclass(frozen=True, order=True)
class _Checkpoint:
    """The last signed line, and its number and digest."""

    number: int
    digest: str
    line: bytes

    def follows(self, last: str) -> bool:
        """Whether the line comes after one with the digest ``last``."""
        return digest.of_bytes(self.line) == self.digest and (
            LogEntry.model_validate_json(self.line).previous == last
        )


def _log_path(workspace: Workspace) -> Path:
    return workspace.root / "audit" / "log.jsonl"


def _checkpoint_paths(workspace: Workspace) -> list[Path]:
    other = os.environ.get(CHECKPOINT_VARIABLE)
    own = workspace.root / "audit-checkpoint" / "checkpoint.json"
    return [own, Path(other)] if other else [own]


def _checkpoint(workspace: Workspace) -> _Checkpoint | None:
    """The last signed line; the furthest of the copies that there are."""
    return next(reversed(_checkpoints(workspace)), None)


def _checkpoints(workspace: Workspace) -> list[_Checkpoint]:
    """The signed line of each copy, the furthest last.

    Raises:
        VerificationError: A copy is damaged or not signed by the workspace's key.
    """
    found: list[_Checkpoint] = []
    for path in _checkpoint_paths(workspace):
        if not path.exists():
            continue
        try:
            body = json.loads(path.read_bytes())
            name = body["last"]
            number, _, last = name.partition("/")
            position = _Checkpoint(int(number), last, str(body.get("line", "")).encode())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise VerificationError(
                "audit checkpoint cannot be read", where=path, reason=Refusal.LOG_CHANGED
            ) from error
        try:
            check_reference(body, _PURPOSE, name, usable_keys(workspace, "log"))
        except VerificationError as error:
            raise VerificationError(
                error.what,
                where=path,
                hint="If the key was replaced, move this file and the folder audit/ away, as "
                "evidence; a new log begins",
                reason=error.reason,
            ) from error
        found.append(position)
    return sorted(set(found))


def _lines(path: Path) -> Iterator[bytes]:
    """The lines without their line break; a last line that was not finished counts, too."""
    if path.exists():
        with path.open("rb") as stream:
            for line in stream:
                yield line.removesuffix(b"\n")


def _end_of(path: Path) -> tuple[int, str]:
    """Number and digest of the last line."""
    content = path.read_bytes() if path.exists() else b""
    if not content:
        return 0, _START
    # Faster than a loop over the lines: each append counts them.
    ended = content.removesuffix(b"\n")
    return ended.count(b"\n") + 1, digest.of_bytes(ended[ended.rfind(b"\n") + 1 :])


def _require_unchanged(workspace: Workspace) -> None:
    report = verify_log(workspace)
    if report.problems:
        raise VerificationError(
            f"audit log was changed: {report.problems[0]}",
            where=_log_path(workspace),
            hint="`workbench audit verify` lists all; restore it from a backup first",
            reason=report.reason,
        )


@contextmanager
def signed_again(workspace: Workspace) -> Iterator[None]:
    """A change of keys: nobody appends inside the block, and after it the checkpoint is signed with
    the key that the log has then.

    Raises:
        VerificationError: The log was changed.
    """
    with _locked(workspace):
        signing_key(workspace, "log")
        _require_unchanged(workspace)
        signed = _checkpoint(workspace)
        yield
        if signed is not None:
            _write_checkpoint(workspace, f"{signed.number}/{signed.digest}", signed.line)


def _write_checkpoint(workspace: Workspace, name: str, line: bytes) -> None:
    signature = sign_reference(signing_key(workspace, "log"), _PURPOSE, name)
    body = {"last": name, "line": line.decode(), **signature}
    for target in _checkpoint_paths(workspace):
        write_atomic(target, json.dumps(body, indent=1).encode())


def _locked(workspace: Workspace) -> AbstractContextManager[None]:
    return exclusive(workspace, "audit", "writing the audit log", timeout_s=_LOCK_TIMEOUT_S)
