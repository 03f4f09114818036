"""Lineage graphs, upstream and downstream, read from the records.

Records name what they were made from; run records connect outputs with the notebook, environment
and inputs. Frames, labels and drives appear as groups with counts, or one by one where one of them
is asked for.

Records never change, so each is read once and its edges are kept in ``index/edges.jsonl``. The file
may be deleted at any time: it is rebuilt from the records.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import RecordError
from workbench.core.parsing import UNREADABLE
from workbench.core.text import counted, short_repr
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic
from workbench.records.base import Record, Ref, digest_of, kind_of, make_ref, refs_in, short_ref
from workbench.records.model_types import StepRun
from workbench.records.references import resolve_reference
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, DatasetVersion, LabelBatch, LabelSet, Selection

__all__ = ["trace", "trace_reference"]


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
        with contextlib.suppress(OSError):  # a workspace that cannot be written can be read
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
    try:
        body = json.loads(content)
        body.pop("payload", None)
        outputs = refs_in(body.pop("outputs", {})) if body.get("kind") == StepRun.KIND else []
    except UNREADABLE:
        return None
    return _RecordEdges(ref, tuple(refs_in(body)), tuple(outputs))


NODE_KINDS = (
    "drive",
    "frame",
    "label",
    "annotator",
    "dataset",
    "selection",
    "batch",
    "notebook",
    "environment",
    "run",
    "checkpoint",
    "bundle",
    "gates",
    "release",
)
"""The kinds of nodes in the lineage of a model. Other records appear under their own kind."""

_NODE_FIELDS: dict[str, tuple[str, ...]] = {
    "dataset": ("name", "frames", "labels", "drives", "made_by", "simulated", "quarantined"),
    "selection": ("budget", "method", "seed"),
    "batch": ("overlap",),
    "label": ("labels", "agreement", "simulated"),
    "checkpoint": ("architecture", "training", "conditions", "supplier"),
    "calibration": ("slices", "drives", "apart", "chosen", "simulated"),
    "bundle": ("parity",),
    "gates": ("verdict", "simulated", "gates"),
    "release": ("model", "verdict", "promoted", "key", "signature"),
    "notebook": ("name", "code"),
    "environment": ("python", "distributions", "machine"),
    "run": ("step", "key", "parameters", "metrics"),
    "receipt": ("checks", "watch", "warnings"),
    "step": ("name", "version", "owner", "reviewer", "commit"),
}
"""Fields of a record that a node shows beside kind and digest."""

_FRAME_REFERENCE = re.compile(r"^(?:frame/|sha256:)([0-9a-f]{4,64})\Z")
_ANNOTATOR_REFERENCE = re.compile(r"^annotator/(.+)\Z")


@short_repr
@dataclass(frozen=True)
class LineageGraph:
    """Nodes by id, and edges from what was used to what was made from it.

    Attributes:
        root: The node that was asked about.
        forward: Whether the other nodes were made from the root, or the root from them.
        damaged: Records that cannot be read and might belong here.
    """

    nodes: dict[str, Json]
    edges: tuple[tuple[str, str], ...]
    root: str = ""
    forward: bool = False
    damaged: tuple[Ref, ...] = ()

    def as_json(self) -> Json:
        """The graph as `workbench lineage --json` prints it."""
        return {
            "root": self.root,
            "direction": "forward" if self.forward else "backward",
            "nodes": [{"id": name, **node} for name, node in sorted(self.nodes.items())],
            "edges": [{"from": start, "to": end} for start, end in sorted(self.edges)],
            **({"damaged": list(self.damaged)} if self.damaged else {}),
        }


def trace(store: Store, *refs: Ref, forward: bool = False) -> LineageGraph:
    """What records came from, down to drives and annotators; or what was made from them.

    Args:
        refs: Where to start; the first one is the root.
        forward: Follow the edges to runs, models, bundles and releases made from ``refs``.
    """
    index = EdgeIndex(store)
    nodes: dict[str, Json] = {}
    edges: set[tuple[str, str]] = set()
    waiting = list(refs)
    while waiting:
        current = waiting.pop()
        if current in nodes:
            continue
        record, nodes[current] = _lookup_node(store, current)
        if forward:
            following = index.downstream(current)
            edges.update((current, ref) for ref in following)
            waiting.extend(following)
        elif record is not None:
            groups = _record_groups(store, current, record)
            nodes.update(groups)
            sources = index.upstream(current)
            edges.update((name, current) for name in (*groups, *sources))
            waiting.extend(sources)
    root = refs[0] if refs else ""
    return LineageGraph(nodes, tuple(edges), root, forward, index.damaged)


def trace_reference(workspace: Workspace, text: str, *, forward: bool = False) -> LineageGraph:
    """The lineage of what a person names.

    Args:
        text: A reference (see `workbench.records.references`), ``frame/DIGEST``,
            ``annotator/NAME``, or a file of a record, by its path or its digest.

    Raises:
        RecordError: ``text`` names nothing in this workspace, or is ambiguous.
    """
    store = Store(workspace)
    file = Path(text)
    if len(file.parts) > 1 and file.is_file():
        return trace(store, _find_file_holder(store, digest.of_file(file), text), forward=forward)
    annotator = _ANNOTATOR_REFERENCE.match(text)
    if annotator:
        return _annotator_graph(store, annotator.group(1), forward)
    frame = _FRAME_REFERENCE.match(text)
    if frame is None:
        return trace(store, resolve_reference(workspace, text), forward=forward)
    prefix = frame.group(1)
    if text.startswith("sha256:"):
        refs = (ref for kind in RECORD_TYPES for ref in store.refs(kind))
        if any(digest_of(ref).startswith(prefix) for ref in refs):
            return trace(store, resolve_reference(workspace, text), forward=forward)
        if not any(_frame_rows(store, prefix)):
            return trace(store, _find_file_holder(store, prefix, text), forward=forward)
    return _frame_graph(store, prefix, forward)


def without_shortcuts(graph: LineageGraph) -> set[tuple[str, str]]:
    """The graph's edges, reduced for display.

    Returns:
        The edges without those from a run's inputs directly to its outputs.
    """
    after: dict[str, set[str]] = defaultdict(set)
    for start, end in graph.edges:
        after[start].add(end)
    over_runs: dict[str, set[str]] = defaultdict(set)
    for start, end in graph.edges:
        if graph.nodes[end]["kind"] == StepRun.KIND:
            over_runs[start] |= after[end]
    return {(start, end) for start, end in graph.edges if end not in over_runs[start]}


def graph_text(graph: LineageGraph) -> str:
    """The graph as a tree below its root, without shortcuts; each subtree is printed once."""
    below: dict[str, list[str]] = {}
    for start, end in sorted(without_shortcuts(graph)):
        parent, child = (start, end) if graph.forward else (end, start)
        below.setdefault(parent, []).append(child)
    lines: list[str] = []
    seen: set[str] = set()
    waiting = [(graph.root, 0)]
    while waiting:
        name, depth = waiting.pop()
        repeated = name in seen and bool(below.get(name))
        seen.add(name)
        suffix = "  (see above)" if repeated else ""
        lines.append(f"{'  ' * depth}{node_text(graph.nodes[name])}{suffix}")
        if not repeated:
            children = sorted(below.get(name, []), key=_node_order, reverse=True)
            waiting.extend((child, depth + 1) for child in children)
    if graph.damaged:
        count = counted(len(graph.damaged), "damaged record")
        lines.append(f"{count} might belong here: run `workbench doctor --records`")
    return "\n".join(lines)


def _node_order(name: str) -> tuple[int, str]:
    kind = name.partition("/")[0]
    return NODE_KINDS.index(kind) if kind in NODE_KINDS else len(NODE_KINDS), name


def node_text(node: Json) -> str:
    """A node in one line."""
    words = [f"{node['kind']:11} {str(node.get('digest', ''))[:12]:12}"]
    for key in ("name", "step", "model", "made_by", "verdict", "origin", "method", "role", "drive"):
        if key in node:
            words.append(str(node[key]))
    for key in ("frames", "labels", "drives", "count", "boxes", "version"):
        if key in node:
            words.append(f"{key} {node[key]}")
    if "holds" in node:
        words.append("contains: " + ", ".join(f"{k} {v}" for k, v in node["holds"].items()))
    if node.get("missing"):
        words.append("MISSING from the store")
    if node.get("damaged"):
        words.append(f"DAMAGED: {node['damaged']}")
    if node.get("simulated"):
        words.append("simulated")
    return "  ".join(words)


def _lookup_node(store: Store, ref: Ref) -> tuple[Record | None, Json]:
    """A record and its node; a missing or damaged record is marked in the node."""
    node = {"kind": kind_of(ref), "digest": digest_of(ref)}
    if not store.exists(ref):
        return None, {**node, "missing": True}
    try:
        record = store.load(ref)
    except RecordError as error:
        return None, {**node, "damaged": error.what}
    fields = set(_NODE_FIELDS.get(record.KIND, ()))
    return record, {**node, **record.model_dump(mode="json", include=fields)}


def _record_groups(store: Store, ref: Ref, record: Record) -> dict[str, Json]:
    """Groups of frames, drives and labels of a dataset; the annotators of a label set."""
    if isinstance(record, DatasetVersion):
        return _dataset_groups(store, ref, record)
    if not isinstance(record, LabelSet):
        return {}
    return {
        f"annotator/{digest_of(ref)[:12]}/{annotator.id}": {
            "kind": "annotator",
            "digest": digest_of(ref),
            "name": annotator.id,
            **annotator.model_dump(mode="json", exclude={"id"}),
        }
        for annotator in record.annotators
    }


def _dataset_groups(store: Store, ref: Ref, record: DatasetVersion) -> dict[str, Json]:
    drives = [row["id"] for row in _read_rows(store.payload(ref, "drives.jsonl"))]
    labels: Counter[tuple[str, str]] = Counter(
        (row["origin"], row["annotator"]) for row in _read_rows(store.payload(ref, "labels.jsonl"))
    )
    full = digest_of(ref)
    short = full[:12]
    frames = {"kind": "frame", "digest": full, "count": record.frames}
    drive = {"kind": "drive", "digest": full, "count": record.drives, "names": drives}
    groups: dict[str, Json] = {f"frame/{short}": frames, f"drive/{short}": drive}
    for origin in sorted({origin for origin, _ in labels}):
        counts = {who: count for (other, who), count in labels.items() if other == origin}
        groups[f"label/{short}/{origin}"] = {
            "kind": "label",
            "digest": full,
            "origin": origin,
            "count": sum(counts.values()),
            "annotators": sorted(counts),
        }
    return groups


def _read_rows(path: Path) -> list[Json]:
    """Rows as plain JSON: a pool has hundreds of thousands, and two fields of each are used."""
    with path.open("rb") as stream:
        return [json.loads(line) for line in stream]


# Lineage of what is not a record: one frame, one annotator, or a file of a record.


def _find_file_holder(store: Store, prefix: str, text: str) -> Ref:
    """The record with a payload file of this digest, such as the bundle of a deployed model.

    Args:
        text: What the user asked for, for the message.

    Raises:
        RecordError: No record has such a file, or several have.
    """
    entry = f'"sha256":"{prefix}'
    refs = [ref for kind in RECORD_TYPES for ref in _refs_containing(store, kind, entry)]
    if len(refs) == 1:
        return refs[0]
    if not refs:
        raise RecordError(
            "no record, frame or file of a record has this digest",
            where=text,
            hint="`workbench datasets` and `workbench runs` list the records of this workspace",
        )
    several = ", ".join(short_ref(ref) for ref in refs[:5])
    raise RecordError(f"{len(refs)} records contain this file", where=text, hint=f"Ask: {several}")


def _frame_graph(store: Store, prefix: str, forward: bool) -> LineageGraph:
    rows = list(_frame_rows(store, prefix))
    newest, ids = dict(rows), {row["id"] for _, row in rows}
    if not ids:
        raise RecordError(
            "no frame has this digest",
            where=f"frame/{prefix}",
            hint="`workbench datasets` lists the datasets of this workspace",
        )
    if len(ids) > 1:
        several = ", ".join(sorted(frame[:16] for frame in ids)[:5])
        raise RecordError(
            f"ambiguous frame digest: {len(ids)} matches ({several})",
            where=f"frame/{prefix}",
            hint="Give more digits",
        )
    frame = ids.pop()
    dataset, row = list(newest.items())[-1]
    fields = ("drive", "index", "conditions", "role", "redaction")
    root = make_ref("frame", frame)
    node = {"kind": "frame", "digest": frame, **{key: row[key] for key in fields if key in row}}
    if not forward:
        return _frame_sources(store, root, node, dataset)
    notes: dict[str, Json] = {}
    for ref, row in newest.items():
        labels = _matching_rows(store, ref, "labels.jsonl", frame)
        count = sum(label["frame"] == frame for label in labels)
        notes[ref] = {"holds": {"role": row.get("role") or "none", "labels": count}}
    for kind in (Selection.KIND, LabelBatch.KIND):
        notes |= {ref: {} for ref in _refs_containing(store, kind, frame)}
    return _downstream_of(store, root, node, notes)


def _frame_sources(store: Store, root: Ref, node: Json, dataset: Ref) -> LineageGraph:
    """A frame's drive, and the annotators of its labels in its newest dataset."""
    nodes: dict[str, Json] = {root: node}
    for drive in _matching_rows(store, dataset, "drives.jsonl", node["drive"]):
        if drive["id"] == node["drive"]:
            facts = {key: value for key, value in drive.items() if key != "id"}
            nodes[f"drive/{drive['id']}"] = {"kind": "drive", "name": drive["id"], **facts}
    labels: Counter[tuple[str, str]] = Counter(
        (row["origin"], row["annotator"])
        for row in _matching_rows(store, dataset, "labels.jsonl", node["digest"])
        if row["frame"] == node["digest"]
    )
    for (origin, who), count in sorted(labels.items()):
        facts = {"kind": "label", "origin": origin, "name": who, "count": count}
        nodes[f"label/{origin}/{who}"] = facts
    return LineageGraph(nodes, tuple((name, root) for name in nodes if name != root), root)


def _annotator_graph(store: Store, name: str, forward: bool) -> LineageGraph:
    notes: dict[str, Json] = {}
    frames = boxes = 0
    quoted = json.dumps(name, ensure_ascii=False)
    for ref in _refs_containing(store, LabelSet.KIND, quoted):
        for annotator in store.get(ref, LabelSet).annotators:
            if annotator.id == name:
                notes[ref] = {"holds": {"frames": annotator.frames, "boxes": annotator.boxes}}
                frames, boxes = frames + annotator.frames, boxes + annotator.boxes
    for ref in store.refs(DatasetVersion.KIND):
        rows = _matching_rows(store, ref, "labels.jsonl", quoted)
        labeled = [row["frame"] for row in rows if row["annotator"] == name]
        if labeled:
            notes[ref] = {"holds": {"frames": len(set(labeled)), "labels": len(labeled)}}
    root = f"annotator/{name}"
    if not notes:
        raise RecordError(
            "unknown annotator", where=root, hint="The lineage of a dataset lists its annotators"
        )
    node: Json = {"kind": "annotator", "name": name, "frames": frames, "boxes": boxes}
    if not forward:
        return LineageGraph({root: node}, (), root)
    return _downstream_of(store, root, node, notes)


def _downstream_of(store: Store, root: str, node: Json, notes: Mapping[Ref, Json]) -> LineageGraph:
    """What was made from ``root``, which is no record but part of the keys of ``notes``.

    Args:
        notes: Record that contains the root, to what its node shows about that.
    """
    graph = trace(store, *notes, forward=True)
    nodes = {name: {**fields, **notes.get(name, {})} for name, fields in graph.nodes.items()}
    edges = (*graph.edges, *((root, name) for name in notes))
    return LineageGraph({root: node, **nodes}, edges, root, forward=True)


def _frame_rows(store: Store, prefix: str) -> Iterator[tuple[Ref, Json]]:
    """Each dataset's row of the frames with this digest prefix, oldest dataset first."""
    for ref in store.refs(DatasetVersion.KIND):
        for row in _matching_rows(store, ref, "frames.jsonl", f'"{prefix}'):
            if row["id"].startswith(prefix):
                yield ref, row


def _matching_rows(store: Store, ref: Ref, name: str, text: str) -> Iterator[Json]:
    """Rows of a payload file that contain ``text``: searched as bytes, then parsed."""
    content, pattern = store.payload(ref, name).read_bytes(), text.encode()
    at = content.find(pattern)
    while at >= 0:
        start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
        end = len(content) if end < 0 else end
        yield json.loads(content[start:end])
        at = content.find(pattern, end)


def _refs_containing(store: Store, kind: str, text: str) -> list[Ref]:
    """Records of a kind whose own JSON contains ``text``."""
    pattern = text.encode()
    return [
        ref
        for ref in store.refs(kind)
        if pattern in (store.folder(ref) / "record.json").read_bytes()
    ]
