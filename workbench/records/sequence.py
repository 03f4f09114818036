"""The order in which the records of a workspace were written.

Each record gets the next number when it is written, and keeps it. Which release is the champion,
which run the latest and which number a dataset has follow from these numbers: a clock that is set
back, or a backup that is restored with new file times, changes nothing.

The number is in the record's side file ``sequence.json``. ``index/sequence`` has an empty file
``NUMBER.KIND.DIGEST`` for each record, so that one listing gives the order; it is rebuilt from the
side files. Records from before there were numbers are ordered by their time once, and numbered.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace, write_atomic
from workbench.records.base import Ref, digest_of, kind_of, make_ref

__all__ = ["RecordSequence"]

SIDE_FILE = "sequence.json"
COMPLETE_FILE = "COMPLETE"
_ENTRY = re.compile(r"(\d{12,15})\.([a-z]+)\.([0-9a-f]{64})\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_MAX_NUMBER = 10**12


class RecordSequence:
    """Numbers of the records of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._records = workspace.records
        self._folder = workspace.index / "sequence"
        self._lock_file = workspace.root / "locks" / "records.lock"
        self._listed: tuple[int, dict[Ref, int]] = (0, {})

    def in_order(self, kind: str) -> list[Ref]:
        """References of all records of a kind, in the order in which they were written.

        A record that was complete and has lost its mark is among them: reading it is refused, where
        leaving it out would give another answer.
        """
        refs = self._complete(kind)
        numbers = self._numbers()
        if any(ref not in numbers for ref in refs):
            numbers = self._number_all()
        unmarked = {ref for ref in numbers if kind_of(ref) == kind}.difference(refs)
        refs += [ref for ref in unmarked if self._side(ref).parent.is_dir()]
        return sorted(refs, key=lambda ref: (numbers.get(ref, _MAX_NUMBER), ref))

    def lost(self, kind: str) -> list[Ref]:
        """References of the records of a kind that have a number and no folder."""
        refs = [ref for ref in self._numbers() if kind_of(ref) == kind]
        return sorted(ref for ref in refs if not self._side(ref).parent.is_dir())

    def sort_key(self, ref: Ref) -> tuple[int, Ref]:
        """Sorts records of several kinds as they were written; call `in_order` of them before."""
        return (self._numbers().get(ref, _MAX_NUMBER), ref)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock under which numbers are given."""
        from filelock import FileLock

        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock_file):
            yield

    def next_number(self, ref: Ref) -> int:
        """The number for a record that is about to be written; call with the lock held.

        A record that was lost and is written again has its number already.
        """
        numbers = self._list()
        missing = [one for one in self._complete(kind_of(ref)) if one not in numbers]
        if missing:
            numbers = self._number(missing, numbers)
        number = numbers.get(ref) or max(numbers.values(), default=0) + 1
        if number >= _MAX_NUMBER:
            last = max(numbers, key=lambda one: numbers[one])
            raise RecordError(
                f"the order of records is damaged: one has number {numbers[last]:,}",
                where=self._side(last) / SIDE_FILE,
                hint=f"Correct it there, and delete the folder {self._folder}",
            )
        return number

    def enter(self, ref: Ref, number: int) -> None:
        """Enter a record that is written; call with the lock held."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{number:012d}.{kind_of(ref)}.{digest_of(ref)}").touch()

    def _numbers(self) -> dict[Ref, int]:
        """As `_list`, unless the folder is as it was."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return {}
        if self._listed[0] != changed:
            self._listed = (changed, self._list())
        return self._listed[1]

    def _list(self) -> dict[Ref, int]:
        try:
            names = sorted((path.name for path in self._folder.iterdir()), reverse=True)
        except OSError:
            return {}
        matches = (_ENTRY.match(name) for name in names)
        # In falling order: of two entries of one record the first that was given wins.
        return {make_ref(m[2], m[3]): int(m[1]) for m in matches if m}

    def _complete(self, kind: str) -> list[Ref]:
        marks = (self._records / kind).glob(f"*/{COMPLETE_FILE}")
        return [make_ref(kind, m.parent.name) for m in marks if _DIGEST.match(m.parent.name)]

    def _number_all(self) -> dict[Ref, int]:
        """Number the records of all kinds that have no entry."""
        kinds = [path.name for path in self._records.iterdir() if path.name.isalpha()]

        def missing(numbers: dict[Ref, int]) -> list[Ref]:
            return [ref for kind in kinds for ref in self._complete(kind) if ref not in numbers]

        try:
            with self.lock():
                numbers = self._list()
                return self._number(missing(numbers), numbers)
        except OSError:  # a workspace that cannot be written is read in the same order
            numbers = self._list()
            return self._number(missing(numbers), numbers, write=False)

    def _number(
        self, missing: list[Ref], numbers: dict[Ref, int], *, write: bool = True
    ) -> dict[Ref, int]:
        """Give ``missing`` the numbers of their side files, and the others the next ones."""
        known = {ref: number for ref in missing if (number := self._side_number(ref))}
        numbers = {**numbers, **known}
        last = max(numbers.values(), default=0)
        unnumbered = sorted((ref for ref in missing if ref not in known), key=self._age)
        new = {ref: last + place for place, ref in enumerate(unnumbered, start=1)}
        if write:
            for ref, number in new.items():
                write_atomic(self._side(ref) / SIDE_FILE, side_content(number))
            for ref, number in {**known, **new}.items():
                self.enter(ref, number)
        return {**numbers, **new}

    def _side(self, ref: Ref) -> Path:
        return self._records / kind_of(ref) / digest_of(ref) / "side"

    def _side_number(self, ref: Ref) -> int | None:
        number = _read_field(self._side(ref) / SIDE_FILE, "number")
        valid = type(number) is int and 0 < number < _MAX_NUMBER
        return number if valid else None

    def _age(self, ref: Ref) -> tuple[str, Ref]:
        """When a record from before there were numbers was written."""
        at = _read_field(self._side(ref) / "created.json", "at")
        if not isinstance(at, str):
            at = ""
            with contextlib.suppress(OSError):  # removed meanwhile
                mark = self._side(ref).parent / COMPLETE_FILE
                at = datetime.fromtimestamp(mark.stat().st_mtime, UTC).isoformat()
        return (at, ref)


def side_content(number: int) -> bytes:
    """The side file of a record's number."""
    return json.dumps({"number": number}).encode()


def _read_field(path: Path, field: str) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content.get(field) if isinstance(content, dict) else None
