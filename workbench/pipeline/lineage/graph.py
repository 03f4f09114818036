"""Lineage graphs, upstream and downstream, read from the records.

Records name what they were made from; run records connect outputs with the notebook, environment
and inputs. Frames, labels and drives appear as groups with counts, or one by one where one of them
is asked for.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import RecordError
from workbench.core.text import counted, short_repr
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.pipeline.lineage.edges import EdgeIndex
from workbench.records.base import Record, Ref, digest_of, kind_of, make_ref, short_ref
from workbench.records.model_types import StepRun
from workbench.records.references import resolve_reference
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, DatasetVersion, LabelBatch, LabelSet, Selection

__all__ = ["graph_text", "trace", "trace_reference"]

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
