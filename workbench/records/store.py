"""The record store: ``records/<kind>/<digest>/{record.json, payload/…, COMPLETE, side/…}``.

``record.json`` is canonical JSON and lists the digest of every payload file, so its own digest
covers everything. A record is written to a temporary folder and renamed: readers, crashes and
concurrent writers never see a partial record. ``side/`` holds what is not part of the digest:
times, hosts, latencies, signatures.

Bytes are verified when they are read, and when the same record is written again: files of it that
are damaged by then are replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from pydantic import ValidationError

from workbench.core import digest
from workbench.core.errors import RecordError, system_error
from workbench.core.parsing import parse_json
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic
from workbench.records import sequence
from workbench.records.base import Record, Ref, digest_of, kind_of, make_ref
from workbench.records.sequence import COMPLETE_FILE, RecordSequence
from workbench.records.types import RECORD_TYPES

__all__ = ["Store"]

R = TypeVar("R", bound=Record)
Payload = Mapping[str, Path | bytes]

RECORD_FILE = "record.json"
_SIDES_OF_A_WORKSPACE = ("sequence", "version")
"""Side files that mean something in their own workspace only, and are not copied to another."""

_OPTIONAL_NUMBER = (float, int, NoneType)
_SIDE_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "cost": {"seconds": _OPTIONAL_NUMBER, "peak_memory_mib": _OPTIONAL_NUMBER},
    "created": {"at": (str,), "host": (str,)},
    "mlflow": {"run": (str,)},
    "place": {"folder": (str,)},
    "registry": {"version": (int,), "run": (str,)},
    "sequence": {"number": (int,)},
    "source_root": {"folder": (str,)},
    "version": {"name": (str,), "number": (int,)},
}
"""Types of what is read from side files. With another one a file counts as missing."""

_DAMAGED = (
    "Run the pipeline that wrote it again, which writes it anew, or restore it from a backup; "
    "`workbench doctor --records` names all that is damaged"
)


class Store:
    """The records of a workspace. Cheap to construct; safe to use from several processes."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.root = workspace.records
        self.sequence = RecordSequence(workspace)
        self._verified: set[Path] = set()

    def put(
        self,
        record: Record,
        payload: Payload | None = None,
        *,
        side: Mapping[str, Any] | None = None,
    ) -> Ref:
        """Write ``record`` with its payload.

        Of a record that exists, files that are missing or were changed are written again.

        Args:
            payload: Bytes, or a file to copy, by relative file name.
            side: JSON values by name that are not part of the digest.

        Returns:
            The reference of the record.

        Raises:
            RecordError: A payload name points outside the record.
        """
        payload = payload or {}
        content = _content(record, payload)
        ref = make_ref(record.KIND, digest.of_bytes(content))
        self._write_or_repair(ref, content, payload, side or {})
        return ref

    @staticmethod
    def ref_of(record: Record) -> Ref:
        """The reference that a record without payload has; nothing is written."""
        return make_ref(record.KIND, digest.of_bytes(_content(record, {})))

    def restore(
        self, ref: Ref, content: bytes, payload: Mapping[str, Path], *, side: Mapping[str, Any]
    ) -> None:
        """Copy a record from another store byte for byte, repairing one that exists as `put` does.

        Args:
            content: Its ``record.json``.
            payload: Files to copy, by relative file name.
            side: JSON values by name that are not part of the digest.

        Raises:
            RecordError: The content or a file does not match its digest.
        """
        if digest.of_bytes(content) != digest_of(ref):
            raise RecordError("record does not match its digest: it was changed", where=ref)
        entries = {name: _payload_entry(name, source) for name, source in payload.items()}
        expected = _parse_body(ref, content)["payload"]
        for name in sorted(expected.keys() | entries.keys()):
            if expected.get(name) != entries.get(name):
                raise RecordError(f"payload file {name!r} is missing or was changed", where=ref)
        self._write_or_repair(ref, content, payload, side)

    def get(self, ref: Ref, expected: type[R]) -> R:
        """Read a record of type ``expected``.

        Raises:
            RecordError: It does not exist, was changed, or has another type.
        """
        record = self.load(ref)
        if not isinstance(record, expected):
            raise RecordError(
                f"expected a {expected.KIND} record, found a {record.KIND}", where=ref
            )
        return record

    def load(self, ref: Ref) -> Record:
        """Read a record of any type.

        Raises:
            RecordError: It does not exist, was changed, or this version cannot read it.
        """
        body = self._body(ref)
        body.pop("payload")
        kind = body.pop("kind")
        try:
            return RECORD_TYPES[kind].model_validate(body)
        except (KeyError, ValidationError) as error:
            raise RecordError(
                "record has a format that this version cannot read",
                where=ref,
                hint="A newer version of the workbench wrote it; update this one",
            ) from error

    def exists(self, ref: Ref) -> bool:
        """Whether the record is complete."""
        return (self.folder(ref) / COMPLETE_FILE).exists()

    def payload(self, ref: Ref, name: str) -> Path:
        """Path of a payload file; its digest is verified once per process.

        Raises:
            RecordError: The file is not part of the record, is missing, or was changed.
        """
        expected = self.payload_digests(ref).get(name)
        if expected is None:
            raise RecordError(f"record has no payload file {name!r}", where=ref)
        path = self.folder(ref) / "payload" / name
        if path not in self._verified:
            if not digest.file_matches(path, expected):
                raise RecordError(
                    f"payload file {name!r} is missing or was changed", where=path, hint=_DAMAGED
                )
            self._verified.add(path)
        return path

    def read_payload(self, ref: Ref, name: str) -> bytes:
        """The bytes of a payload file, verified as they were read.

        Unlike the file behind `payload`, they cannot change afterwards.

        Raises:
            RecordError: The file is not part of the record, is missing, or was changed.
        """
        path = self.payload(ref, name)
        content = path.read_bytes()
        if digest.of_bytes(content) != self.payload_digests(ref)[name]:
            raise RecordError(f"payload file {name!r} was changed while it was read", where=path)
        return content

    def payload_digests(self, ref: Ref) -> dict[str, str]:
        """Digest of each payload file, as the record lists them; the files are not read.

        Raises:
            RecordError: The record does not exist or was changed.
        """
        return {name: entry["sha256"] for name, entry in self._body(ref)["payload"].items()}

    def payload_names(self, ref: Ref) -> list[str]:
        """Relative names of the payload files, sorted."""
        return sorted(self._body(ref)["payload"])

    def refs(self, kind: str) -> Iterator[Ref]:
        """References of all records of a kind, in the order in which they were written.

        The order is that of `RecordSequence`, not of file times.
        """
        yield from self.sequence.in_order(kind)

    def readable(self, expected: type[R]) -> Iterator[tuple[Ref, R]]:
        """Every record of a type that can be read, in the same order; `damaged` has the others."""
        for ref in self.refs(expected.KIND):
            try:
                record = self.get(ref, expected)
            except RecordError:
                continue
            yield ref, record

    def damaged(self, *types: type[Record]) -> dict[Ref, str]:
        """Records of these types that cannot be read or are gone, with the problem."""
        found = {}
        for expected in types:
            found.update(dict.fromkeys(self.sequence.lost(expected.KIND), "its record is gone"))
            for ref in self.refs(expected.KIND):
                try:
                    self.get(ref, expected)
                except RecordError as error:
                    found[ref] = error.what
        return found

    def folder(self, ref: Ref) -> Path:
        """The folder of a record, whether or not it exists."""
        return self.root / kind_of(ref) / digest_of(ref)

    def side(self, ref: Ref, name: str) -> Any:
        """The JSON value of a side file; None if it is missing, damaged or of another shape.

        Side files are not covered by the record's digest: check what they say before relying on it.
        """
        try:
            value = parse_json(self._side_path(ref, name).read_bytes())
        except (OSError, ValueError):
            return None
        fields = _SIDE_FIELDS.get(name)
        if fields is None:
            return value
        valid = isinstance(value, dict) and all(
            type(value.get(field)) in kinds for field, kinds in fields.items()
        )
        return value if valid else None

    def side_is_damaged(self, ref: Ref, name: str) -> bool:
        """Whether there is a side file that cannot be read."""
        return self.side(ref, name) is None and os.path.lexists(self._side_path(ref, name))

    def write_side(self, ref: Ref, name: str, value: Any) -> None:
        """Write or replace a side file."""
        data = json.dumps(value, indent=1, sort_keys=True).encode()
        write_atomic(self._side_path(ref, name), data)

    def _side_path(self, ref: Ref, name: str) -> Path:
        return self.folder(ref) / "side" / f"{name}.json"

    def content(self, ref: Ref) -> bytes:
        """The bytes of ``record.json``, verified.

        Raises:
            RecordError: The record does not exist or was changed.
        """
        path = self.folder(ref) / RECORD_FILE
        if not self.exists(ref) and path.exists():
            problem = "record is incomplete: its mark COMPLETE is missing"
            raise RecordError(problem, where=path.parent, hint=_DAMAGED)
        if not self.exists(ref):
            raise RecordError(
                "no such record", where=ref, hint="`workbench datasets` lists what is here"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            problem = f"record cannot be read: {error.strerror}"
            raise RecordError(problem, where=path, hint=_DAMAGED) from error
        if digest.of_bytes(content) != digest_of(ref):
            problem = "record does not match its digest: it was changed"
            raise RecordError(problem, where=path, hint=_DAMAGED)
        return content

    def _body(self, ref: Ref) -> Json:
        return _parse_body(ref, self.content(ref))

    def _write_or_repair(
        self, ref: Ref, content: bytes, payload: Payload, side: Mapping[str, Any]
    ) -> None:
        try:
            self._write_what_is_missing(ref, content, payload, side)
        except OSError as error:  # such as a full disk
            raise system_error(error) from error

    def _write_what_is_missing(
        self, ref: Ref, content: bytes, payload: Payload, side: Mapping[str, Any]
    ) -> None:
        folder = self.folder(ref)
        if not (folder / COMPLETE_FILE).exists():
            self._write(ref, content, payload, side)
        if not digest.file_matches(folder / RECORD_FILE, digest_of(ref)):
            write_atomic(folder / RECORD_FILE, content)
        for name, entry in json.loads(content)["payload"].items():
            path, source = folder / "payload" / name, payload[name]
            if not digest.file_matches(path, entry["sha256"]):
                self._verified.discard(path)
                write_atomic(path, source if isinstance(source, bytes) else source.read_bytes())

    def _write(self, ref: Ref, content: bytes, payload: Payload, side: Mapping[str, Any]) -> None:
        folder = self.folder(ref)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
        try:
            (temporary / RECORD_FILE).write_bytes(content)
            for name, source in payload.items():
                target = temporary / "payload" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, bytes):
                    target.write_bytes(source)
                else:
                    shutil.copyfile(source, target)
            created = {"at": datetime.now(UTC).isoformat(), "host": socket.gethostname()}
            for name, value in {"created": created, **side}.items():
                if name in _SIDES_OF_A_WORKSPACE:
                    continue
                data = json.dumps(value, indent=1, sort_keys=True).encode()
                write_atomic(temporary / "side" / f"{name}.json", data)
            _sync_tree(temporary)
            with self.sequence.lock():
                if (folder / COMPLETE_FILE).exists():
                    return  # another process has written it
                number = self.sequence.next_number(ref)
                write_atomic(temporary / "side" / sequence.SIDE_FILE, sequence.side_content(number))
                (temporary / COMPLETE_FILE).touch()
                temporary.chmod(0o755)
                if folder.exists():
                    shutil.rmtree(folder)  # an interrupted copy
                temporary.rename(folder)
                self.sequence.enter(ref, number)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _content(record: Record, payload: Payload) -> bytes:
    """The bytes of ``record.json``."""
    body = record.model_dump(mode="json")
    body["kind"] = record.KIND
    body["payload"] = {name: _payload_entry(name, source) for name, source in payload.items()}
    return digest.canonical_json(body)


def _parse_body(ref: Ref, content: bytes) -> Json:
    """The body of a record whose digest is right; anyone can write a file with a right digest."""
    try:
        body = json.loads(content)
        names = [name for name, entry in body["payload"].items() if entry["sha256"]]
        valid = body["kind"] == kind_of(ref)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RecordError("record has an invalid format", where=ref, hint=_DAMAGED) from error
    if not valid or any(_points_outside(name) for name in names):
        raise RecordError("record has an invalid format", where=ref, hint=_DAMAGED)
    return dict(body)


def _points_outside(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _payload_entry(name: str, source: Path | bytes) -> dict[str, str | int]:
    if _points_outside(name):
        raise RecordError("payload name points outside the record", where=name)
    if isinstance(source, bytes):
        return {"sha256": digest.of_bytes(source), "bytes": len(source)}
    return {"sha256": digest.of_file(source), "bytes": source.stat().st_size}


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
