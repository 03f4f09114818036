"""Index of which record was made from which, readable in both directions."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.core import digest, workspace
from workbench.records.base import Ref, make_ref, refs_in
from workbench.records.model_types import StepRun
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES

EDGES_FILE = "edges.jsonl"


@dataclass(frozen=True)
class _EdgeLine:
    """``sources`` is what a record names that came before it; ``outputs`` what a run made."""

    ref: Ref
    sources: tuple[Ref, ...]
    outputs: tuple[Ref, ...]


class EdgeIndex:
    """Both directions between all records of a store, as they were when this was made."""

    def __init__(self, store: Store) -> None:
        self._sources: dict[Ref, tuple[Ref, ...]] = {}
        self._uses: dict[Ref, list[Ref]] = defaultdict(list)
        self._outputs: dict[Ref, tuple[Ref, ...]] = {}
        self._maker: dict[Ref, Ref] = {}
        for line in _current_lines(store):
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


def _current_lines(store: Store) -> list[_EdgeLine]:
    """A line for each record, oldest first; those that are new are read and kept."""
    path = store.workspace.index / EDGES_FILE
    there = dict.fromkeys(_listed_refs(store))
    known = {line.ref: line for line in _cached_lines(path) if line.ref in there}
    new = [
        line
        for ref in _oldest_first(store, there.keys() - known.keys())
        if (line := _read_record_edges(store, ref))
    ]
    lines = [*known.values(), *new]
    if new:
        data = "".join(json.dumps([one.ref, one.sources, one.outputs]) + "\n" for one in lines)
        workspace.write_atomic(path, data.encode())
    return lines


def _listed_refs(store: Store) -> Iterator[Ref]:
    for kind in RECORD_TYPES:
        folder = store.root / kind
        if folder.is_dir():
            yield from (
                make_ref(kind, one.name) for one in os.scandir(folder) if len(one.name) == 64
            )


def _cached_lines(path: Path) -> Iterator[_EdgeLine]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.splitlines():
        try:
            ref, sources, outputs = json.loads(line)
        except ValueError:
            return  # damaged: what follows is read from the records again
        yield _EdgeLine(ref, tuple(sources), tuple(outputs))


def _oldest_first(store: Store, refs: set[Ref]) -> list[Ref]:
    """Complete ones only; a record is as old as its mark."""
    ages = []
    for ref in refs:
        try:
            ages.append(((store.folder(ref) / "COMPLETE").stat().st_mtime_ns, ref))
        except FileNotFoundError:
            continue
    return [ref for _, ref in sorted(ages)]


def _read_record_edges(store: Store, ref: Ref) -> _EdgeLine | None:
    """A record's line, from its plain JSON: quick, and older forms are as good as today's.

    A damaged record has none; whoever loads it is told so.
    """
    content = (store.folder(ref) / "record.json").read_bytes()
    if digest.of_bytes(content) != ref.partition("/")[2]:
        return None
    body = json.loads(content)
    body.pop("payload", None)
    outputs = refs_in(body.pop("outputs", {})) if body.get("kind") == StepRun.KIND else []
    return _EdgeLine(ref, tuple(refs_in(body)), tuple(outputs))
