"""Which record was made from which: an index that lets lineage be walked both ways at once.

Records never change, so each is read once in its life and its line kept in
``index/edges.jsonl``. The file can be thrown away at any time: it is made again from the records.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench import digest, workspace
from workbench.records.base import Ref, make_ref, refs_in
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, StepRun

FILE = "edges.jsonl"


@dataclass(frozen=True)
class _Line:
    """``sources`` is what a record names that came before it; ``outputs`` what a run made."""

    ref: Ref
    sources: tuple[Ref, ...]
    outputs: tuple[Ref, ...]


class Edges:
    """Both directions between all records of a store, as they were when this was made."""

    def __init__(self, store: Store) -> None:
        self._sources: dict[Ref, tuple[Ref, ...]] = {}
        self._uses: dict[Ref, list[Ref]] = defaultdict(list)
        self._outputs: dict[Ref, tuple[Ref, ...]] = {}
        self._maker: dict[Ref, Ref] = {}
        for line in _current(store):
            self._sources[line.ref] = line.sources
            for source in line.sources:
                self._uses[source].append(line.ref)
            if line.outputs:
                self._outputs[line.ref] = line.outputs
                for output in line.outputs:
                    self._maker.setdefault(output, line.ref)

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    def maker(self, ref: Ref) -> Ref | None:
        """The run that made a record first; None for a run itself and for what no run made."""
        return self._maker.get(ref)

    def came_from(self, ref: Ref) -> tuple[Ref, ...]:
        """What a record names as its sources, and the run that made it."""
        maker = self.maker(ref)
        own = self._sources.get(ref, ())
        return own if maker in (None, ref) else (*own, str(maker))

    def made_of(self, ref: Ref) -> tuple[Ref, ...]:
        """What names a record as its source, and for a run what it made."""
        return (*self._uses.get(ref, ()), *self._outputs.get(ref, ()))


def _current(store: Store) -> list[_Line]:
    """A line for each record, oldest first; those that are new are read and kept."""
    path = store.workspace.index / FILE
    there = dict.fromkeys(_listed(store))
    known = {line.ref: line for line in _kept(path) if line.ref in there}
    new = [
        line
        for ref in _oldest_first(store, there.keys() - known.keys())
        if (line := _read(store, ref))
    ]
    lines = [*known.values(), *new]
    if new:
        data = "".join(json.dumps([one.ref, one.sources, one.outputs]) + "\n" for one in lines)
        workspace.write_atomic(path, data.encode())
    return lines


def _listed(store: Store) -> Iterator[Ref]:
    for kind in RECORD_TYPES:
        folder = store.root / kind
        if folder.is_dir():
            yield from (
                make_ref(kind, one.name) for one in os.scandir(folder) if len(one.name) == 64
            )


def _kept(path: Path) -> Iterator[_Line]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.splitlines():
        try:
            ref, sources, outputs = json.loads(line)
        except ValueError:
            return  # damaged: what follows is read from the records again
        yield _Line(ref, tuple(sources), tuple(outputs))


def _oldest_first(store: Store, refs: set[Ref]) -> list[Ref]:
    """Complete ones only; a record is as old as its mark."""
    ages = []
    for ref in refs:
        try:
            ages.append(((store.folder(ref) / "COMPLETE").stat().st_mtime_ns, ref))
        except FileNotFoundError:
            continue
    return [ref for _, ref in sorted(ages)]


def _read(store: Store, ref: Ref) -> _Line | None:
    """A record's line, from its plain JSON: quick, and older forms are as good as today's.

    A damaged record has none; whoever loads it is told so.
    """
    content = (store.folder(ref) / "record.json").read_bytes()
    if digest.of_bytes(content) != ref.partition("/")[2]:
        return None
    body = json.loads(content)
    body.pop("payload", None)
    outputs = refs_in(body.pop("outputs", {})) if body.get("kind") == StepRun.KIND else []
    return _Line(ref, tuple(refs_in(body)), tuple(outputs))
