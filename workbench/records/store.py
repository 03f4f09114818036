"""The record store: ``records/<kind>/<digest>/{record.json, payload/…, COMPLETE, side/…}``.

``record.json`` is canonical JSON and lists the digest of every payload file, so its own digest
covers everything. A record is written to a temporary folder and renamed: readers, crashes and
concurrent writers never see a partial record. ``side/`` holds what is not part of the digest:
times, hosts, latencies, signatures.
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
from typing import Any, TypeVar

from pydantic import ValidationError

from workbench.core import digest
from workbench.core.errors import RecordError
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic
from workbench.records.base import Record, Ref, digest_of, kind_of, make_ref
from workbench.records.types import RECORD_TYPES

__all__ = ["Store"]

R = TypeVar("R", bound=Record)
Payload = Mapping[str, Path | bytes]

_COMPLETE = "COMPLETE"
_RECORD = "record.json"


class Store:
    """The records of a workspace. Cheap to construct; safe to use from several processes."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.root = workspace.records
        self._verified: set[Path] = set()

    def put(
        self,
        record: Record,
        payload: Payload | None = None,
        *,
        side: Mapping[str, Any] | None = None,
    ) -> Ref:
        """Write ``record`` with its payload; a record that exists is left as it is.

        Args:
            payload: Bytes, or a file to copy, by relative file name.
            side: JSON values by name that are not part of the digest.

        Returns:
            The reference of the record.

        Raises:
            RecordError: A payload name points outside the record.
        """
        payload = payload or {}
        body = record.model_dump(mode="json")
        body["kind"] = record.KIND
        body["payload"] = {name: _payload_entry(name, source) for name, source in payload.items()}
        content = digest.canonical_json(body)
        ref = make_ref(record.KIND, digest.of_bytes(content))
        folder = self.folder(ref)
        if not (folder / _COMPLETE).exists():
            self._write(folder, content, payload, side or {})
        return ref

    def restore(
        self, ref: Ref, content: bytes, payload: Mapping[str, Path], *, side: Mapping[str, Any]
    ) -> None:
        """Copy a record from another store byte for byte; a record that exists is left as it is.

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
        expected = json.loads(content)["payload"]
        for name in sorted(expected.keys() | entries.keys()):
            if expected.get(name) != entries.get(name):
                raise RecordError(f"payload file {name!r} is missing or was changed", where=ref)
        if not self.exists(ref):
            self._write(self.folder(ref), content, payload, side)

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
        return (self.folder(ref) / _COMPLETE).exists()

    def payload(self, ref: Ref, name: str) -> Path:
        """Path of a payload file; its digest is verified once per process.

        Raises:
            RecordError: The file is not part of the record, is missing, or was changed.
        """
        expected = self._body(ref)["payload"].get(name)
        if expected is None:
            raise RecordError(f"record has no payload file {name!r}", where=ref)
        path = self.folder(ref) / "payload" / name
        if path not in self._verified:
            if not path.exists() or digest.of_file(path) != expected["sha256"]:
                raise RecordError(
                    f"payload file {name!r} is missing or was changed",
                    where=path,
                    hint="Restore it from a backup, or rerun its step with --fresh",
                )
            self._verified.add(path)
        return path

    def payload_names(self, ref: Ref) -> list[str]:
        """Relative names of the payload files, sorted."""
        return sorted(self._body(ref)["payload"])

    def refs(self, kind: str) -> Iterator[Ref]:
        """References of all complete records of a kind, oldest first."""
        marks = (self.root / kind).glob(f"*/{_COMPLETE}")
        for mark in sorted(marks, key=lambda path: (path.stat().st_mtime_ns, path.parent.name)):
            yield make_ref(kind, mark.parent.name)

    def folder(self, ref: Ref) -> Path:
        """The folder of a record, whether or not it exists."""
        return self.root / kind_of(ref) / digest_of(ref)

    def side(self, ref: Ref, name: str) -> Any:
        """The JSON value of a side file; None if it does not exist."""
        path = self.folder(ref) / "side" / f"{name}.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def write_side(self, ref: Ref, name: str, value: Any) -> None:
        """Write or replace a side file."""
        data = json.dumps(value, indent=1, sort_keys=True).encode()
        write_atomic(self.folder(ref) / "side" / f"{name}.json", data)

    def _body(self, ref: Ref) -> Json:
        path = self.folder(ref) / _RECORD
        if not self.exists(ref):
            raise RecordError(
                "no such record", where=ref, hint="`workbench datasets` lists what is here"
            )
        content = path.read_bytes()
        if digest.of_bytes(content) != digest_of(ref):
            raise RecordError("record does not match its digest: it was changed", where=path)
        body: Json = json.loads(content)
        return body

    def _write(
        self, folder: Path, content: bytes, payload: Payload, side: Mapping[str, Any]
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
        try:
            (temporary / _RECORD).write_bytes(content)
            for name, source in payload.items():
                target = temporary / "payload" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, bytes):
                    target.write_bytes(source)
                else:
                    shutil.copyfile(source, target)
            created = {"at": datetime.now(UTC).isoformat(), "host": socket.gethostname()}
            for name, value in {"created": created, **side}.items():
                data = json.dumps(value, indent=1, sort_keys=True).encode()
                write_atomic(temporary / "side" / f"{name}.json", data)
            _sync_tree(temporary)
            (temporary / _COMPLETE).touch()
            temporary.chmod(0o755)
            if folder.exists() and not (folder / _COMPLETE).exists():
                shutil.rmtree(folder)  # an interrupted copy
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / _COMPLETE).exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _payload_entry(name: str, source: Path | bytes) -> dict[str, str | int]:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RecordError("payload name points outside the record", where=name)
    if isinstance(source, bytes):
        return {"sha256": digest.of_bytes(source), "bytes": len(source)}
    return {"sha256": digest.of_file(source), "bytes": source.stat().st_size}


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
