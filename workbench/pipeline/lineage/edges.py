"""Index of which record was made from which, readable in both directions.

Records never change, so each is read once and its edges are kept in ``index/edges.jsonl``. The file
may be deleted at any time: it is rebuilt from the records.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.core import digest
from workbench.core.workspace import write_atomic
from workbench.records.base import Ref, digest_of, kind_of, make_ref, refs_in
from workbench.records.model_types import StepRun
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES

__all__ = ()

EDGES_FILE = "edges.jsonl"


@dataclass(frozen=True)
class _RecordEdges:
    """``sources`` are records that a record names as older than itself; ``outputs`` are a run's."""

    ref: Ref
    sources: tuple[Ref, ...]
    outputs: tuple[Ref, ...]


class EdgeIndex:
    """The edges between all records of a store, as they were when the index was created."""

    def __init__(self, store: Store) -> None:
        self._sources: dict[Ref, tuple[Ref, ...]] = {}
        self._uses: dict[Ref, list[Ref]] = defaultdict(list)
        self._outputs: dict[Ref, tuple[Ref, ...]] = {}
        self._runs: dict[Ref, Ref] = {}
        self._folders = dict.fromkeys(_list_refs(store))
        for record in _load_edges(store, self._folders):
            self._sources[record.ref] = record.sources
            for source in record.sources:
                self._uses[source].append(record.ref)
            if record.outputs:
                self._outputs[record.ref] = record.outputs
                for output in record.outputs:
                    self._runs.setdefault(output, record.ref)

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def damaged(self) -> tuple[Ref, ...]:
        """Records that cannot be read, so that their edges are unknown."""
        return tuple(ref for ref in self._folders if ref not in self._sources)

    def run_of(self, ref: Ref) -> Ref | None:
        """The first run that made a record; None for a run, and for what no run made."""
        return self._runs.get(ref)

    def upstream(self, ref: Ref) -> tuple[Ref, ...]:
        """What a record names as its sources, and the run that made it."""
        run = self.run_of(ref)
        sources = self._sources.get(ref, ())
        return sources if run in (None, ref) else (*sources, str(run))

    def downstream(self, ref: Ref) -> tuple[Ref, ...]:
        """What names a record as its source, and the outputs of a run."""
        return (*self._uses.get(ref, ()), *self._outputs.get(ref, ()))


def _load_edges(store: Store, refs: dict[Ref, None]) -> list[_RecordEdges]:
    """Every record's edges, oldest record first; those of new records are read and kept."""
    path = store.workspace.index / EDGES_FILE
    known = {record.ref: record for record in _read_index(path) if record.ref in refs}
    new = [
        record
        for ref in _oldest_first(store, refs.keys() - known.keys())
        if (record := _read_record(store, ref))
    ]
    records = [*known.values(), *new]
    if new:
        lines = (json.dumps([one.ref, one.sources, one.outputs]) + "\n" for one in records)
        content = "".join(lines).encode()
        write_atomic(path, f"{digest.of_bytes(content)}\n".encode() + content)
    return records


def _list_refs(store: Store) -> Iterator[Ref]:
    for kind in RECORD_TYPES:
        folder = store.root / kind
        if folder.is_dir():
            for entry in os.scandir(folder):
                if len(entry.name) == 64:
                    yield make_ref(kind, entry.name)


def _read_index(path: Path) -> Iterator[_RecordEdges]:
    try:
        content = path.read_bytes()
    except OSError:
        return
    head, _, content = content.partition(b"\n")
    if head.decode(errors="replace") != digest.of_bytes(content):
        return  # damaged, or without a digest: all is read from the records again
    for line in content.splitlines():
        ref, sources, outputs = json.loads(line)
        yield _RecordEdges(ref, tuple(sources), tuple(outputs))


def _oldest_first(store: Store, refs: set[Ref]) -> list[Ref]:
    """The records among ``refs``, in the order in which they were written."""
    found = [ref for kind in {kind_of(ref) for ref in refs} for ref in store.refs(kind)]
    return sorted(refs.intersection(found), key=store.sequence.sort_key)


def _read_record(store: Store, ref: Ref) -> _RecordEdges | None:
    """A record's edges, from its plain JSON: fast, and valid for older schema versions too.

    None for a damaged record; loading it raises.
    """
    try:
        content = (store.folder(ref) / "record.json").read_bytes()
    except OSError:
        return None
    if digest.of_bytes(content) != digest_of(ref):
        return None
    body = json.loads(content)
    body.pop("payload", None)
    outputs = refs_in(body.pop("outputs", {})) if body.get("kind") == StepRun.KIND else []
    return _RecordEdges(ref, tuple(refs_in(body)), tuple(outputs))
