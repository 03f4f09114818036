"""Lineage graphs, upstream and downstream, read from the records."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import RecordError
from workbench.pipeline.lineage.edges import EdgeIndex
from workbench.records.base import Record, Ref, digest_of, kind_of, make_ref
from workbench.records.model_types import StepRun
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, DatasetVersion, LabelBatch, LabelSet, Selection

Json = dict[str, Any]

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
"""What the lineage of a model is made of. Other records appear under their own kind."""


@dataclass(frozen=True)
class LineageGraph:
    """Nodes by id, and edges that point from what was used to what was made of it.

    ``root`` is what was asked about; ``forward`` tells whether the rest was made from it or it
    from the rest.
    """

    nodes: dict[str, Json]
    edges: tuple[tuple[str, str], ...]
    root: str = ""
    forward: bool = False

    def as_json(self) -> Json:
        return {
            "root": self.root,
            "direction": "forward" if self.forward else "backward",
            "nodes": [{"id": name, **node} for name, node in sorted(self.nodes.items())],
            "edges": [{"from": start, "to": end} for start, end in sorted(self.edges)],
        }


def trace_upstream(store: Store, ref: Ref) -> LineageGraph:
    """Everything that ``ref`` came from, down to drives and annotators."""
    links = EdgeIndex(store)
    nodes: dict[str, Json] = {}
    edges: set[tuple[str, str]] = set()
    waiting = [ref]
    while waiting:
        current = waiting.pop()
        if current in nodes:
            continue
        record, nodes[current] = _lookup_node(store, current)
        if record is None:
            continue
        for name, group in _record_groups(store, current, record).items():
            nodes[name] = group
            edges.add((name, current))
        for source in links.came_from(current):
            edges.add((source, current))
            waiting.append(source)
    return LineageGraph(nodes, tuple(edges), ref)


def trace_downstream(store: Store, *starts: Ref) -> LineageGraph:
    """Everything that was made from any of ``starts``: runs, models, bundles, releases."""
    links = EdgeIndex(store)
    nodes: dict[str, Json] = {}
    edges: set[tuple[str, str]] = set()
    waiting = list(starts)
    while waiting:
        current = waiting.pop()
        if current in nodes:
            continue
        _, nodes[current] = _lookup_node(store, current)
        for made in links.made_of(current):
            edges.add((current, made))
            waiting.append(made)
    return LineageGraph(nodes, tuple(edges), starts[0] if starts else "", forward=True)


def trace(store: Store, ref: Ref, *, forward: bool) -> LineageGraph:
    """`follow` or `trace`."""
    return trace_downstream(store, ref) if forward else trace_upstream(store, ref)


def with_root(
    graph: LineageGraph, root: str, node: Json, notes: Mapping[str, Json]
) -> LineageGraph:
    """``graph`` seen from a new ``root``, from which each key of ``notes`` was made.

    Args:
        notes: Node to what is to be added to what is told about it.
    """
    nodes = {name: {**told, **notes.get(name, {})} for name, told in graph.nodes.items()}
    edges = (*graph.edges, *((root, name) for name in notes))
    return LineageGraph({root: node, **nodes}, edges, root, graph.forward)


def without_shortcuts(graph: LineageGraph) -> set[tuple[str, str]]:
    """The edges less those that only repeat the way over a run, from its inputs to its outputs."""
    after: dict[str, set[str]] = defaultdict(set)
    for start, end in graph.edges:
        after[start].add(end)
    over_runs: dict[str, set[str]] = defaultdict(set)
    for start, end in graph.edges:
        if graph.nodes[end]["kind"] == StepRun.KIND:
            over_runs[start] |= after[end]
    return {(start, end) for start, end in graph.edges if end not in over_runs[start]}


def _lookup_node(store: Store, ref: Ref) -> tuple[Record | None, Json]:
    """A record and what to tell of it; what is gone or damaged is told, not raised."""
    node = {"kind": kind_of(ref), "digest": digest_of(ref)}
    if not store.exists(ref):
        return None, {**node, "missing": True}
    try:
        record = store.load(ref)
    except RecordError as error:
        return None, {**node, "damaged": error.what}
    body = record.model_dump(mode="json", include=set(_NODE_FIELDS.get(record.KIND, ())))
    return record, {**node, **body}


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
"""The fields of a record that a reader of its lineage wants beside kind and digest."""


def _record_groups(store: Store, ref: Ref, record: Record) -> dict[str, Json]:
    if isinstance(record, DatasetVersion):
        return _dataset_groups(store, ref, record)
    if isinstance(record, LabelSet):
        return {
            f"annotator/{digest_of(ref)[:12]}/{who.id}": {
                "kind": "annotator",
                "digest": digest_of(ref),
                "name": who.id,
                **who.model_dump(mode="json", exclude={"id"}),
            }
            for who in record.annotators
        }
    return {}


def _dataset_groups(store: Store, ref: Ref, record: DatasetVersion) -> dict[str, Json]:
    drives = [row["id"] for row in _read_rows(store.payload(ref, "drives.jsonl"))]
    labels: Counter[tuple[str, str]] = Counter(
        (row["origin"], row["annotator"]) for row in _read_rows(store.payload(ref, "labels.jsonl"))
    )
    short, digest = digest_of(ref)[:12], digest_of(ref)
    groups: dict[str, Json] = {
        f"frame/{short}": {"kind": "frame", "digest": digest, "count": record.frames},
        f"drive/{short}": {
            "kind": "drive",
            "digest": digest,
            "count": record.drives,
            "names": drives,
        },
    }
    for origin in sorted({origin for origin, _ in labels}):
        mine = {who: count for (of, who), count in labels.items() if of == origin}
        groups[f"label/{short}/{origin}"] = {
            "kind": "label",
            "digest": digest,
            "origin": origin,
            "count": sum(mine.values()),
            "annotators": sorted(mine),
        }
    return groups


def _read_rows(path: Path) -> list[Json]:
    """Rows as plain JSON: a pool has hundreds of thousands, and two fields of each are wanted."""
    with path.open("rb") as stream:
        return [json.loads(line) for line in stream]


def graph_text(graph: LineageGraph, root: Ref | None = None) -> str:
    """The graph as a tree below its root, without short cuts; what hangs below is shown once."""
    below: dict[str, list[str]] = {}
    for start, end in sorted(without_shortcuts(graph)):
        parent, child = (start, end) if graph.forward else (end, start)
        below.setdefault(parent, []).append(child)
    lines: list[str] = []
    seen: set[str] = set()
    waiting = [(root or graph.root, 0)]
    while waiting:
        name, depth = waiting.pop()
        again = name in seen and bool(below.get(name))
        seen.add(name)
        line = node_text(graph.nodes[name])
        lines.append(f"{'  ' * depth}{line}{'  (see above)' if again else ''}")
        if not again:
            children = sorted(below.get(name, []), key=_node_order, reverse=True)
            waiting.extend((child, depth + 1) for child in children)
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
        words.append("holds it: " + ", ".join(f"{k} {v}" for k, v in node["holds"].items()))
    if node.get("missing"):
        words.append("MISSING from the store")
    if node.get("damaged"):
        words.append(f"DAMAGED: {node['damaged']}")
    if node.get("simulated"):
        words.append("simulated")
    return "  ".join(words)


# ---- Lineage of what is no record of its own: one frame, or all that one person labeled.
#
# ``frame/PREFIX`` (or a bare digest that is no record's) and ``annotator/NAME``. Which datasets,
# selections, batches and label sets hold it is read from them; what was made of those is lineage.


_FRAME_REFERENCE = re.compile(r"^(?:frame/|sha256:)([0-9a-f]{4,64})$")
_ANNOTATOR_REFERENCE = re.compile(r"^annotator/(.+)$")


@dataclass(frozen=True)
class LineageSubject:
    """A frame (``name`` is its digest, or the beginning of it) or an annotator, by name."""

    kind: str
    name: str


def parse_subject(text: str) -> LineageSubject | None:
    """What ``text`` asks about, if it has the form of a frame or an annotator."""
    frame, annotator = _FRAME_REFERENCE.match(text), _ANNOTATOR_REFERENCE.match(text)
    if frame:
        return LineageSubject("frame", frame.group(1))
    return LineageSubject("annotator", annotator.group(1)) if annotator else None


def trace_subject(store: Store, subject: LineageSubject, *, forward: bool) -> LineageGraph:
    """What holds a subject and was made of that, or what the subject itself came from.

    Raises:
        RecordError: Nothing here holds it, or several frames begin so.
    """
    return (
        _frame_graph(store, subject.name, forward)
        if subject.kind == "frame"
        else _annotator_graph(store, subject.name, forward)
    )


def find_file_holder(store: Store, prefix: str, text: str) -> Ref:
    """The record that holds a file of this digest: from a model on a car back to its bundle.

    Args:
        text: What was asked for, for the message.

    Raises:
        RecordError: No record holds such a file, or several do.
    """
    wanted = f'"sha256":"{prefix}'
    found = [ref for kind in RECORD_TYPES for ref in _refs_containing(store, kind, wanted)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordError(
            "no record, frame or file of a record has this digest",
            where=text,
            hint="`workbench datasets` and `workbench runs` list what is here",
        )
    several = ", ".join(ref[: ref.index("/") + 13] for ref in found[:5])
    raise RecordError(f"{len(found)} records hold this file", where=text, hint=f"Ask: {several}")


def _frame_graph(store: Store, prefix: str, forward: bool) -> LineageGraph:
    rows = list(_frame_rows(store, prefix))
    found, ids = dict(rows), {row["id"] for _, row in rows}
    if len(ids) != 1:
        several = ", ".join(sorted(one[:16] for one in ids)[:5])
        raise RecordError(
            f"{len(ids)} frames begin so: {several}" if ids else "no frame has this digest",
            where=f"frame/{prefix}",
            hint="Give more digits" if ids else "`workbench datasets` lists what is here",
        )
    frame = ids.pop()
    newest = list(found.values())[-1]
    root, kept = make_ref("frame", frame), ("drive", "index", "conditions", "role", "redaction")
    node = {"kind": "frame", "digest": frame, **{key: newest[key] for key in kept if key in newest}}
    if not forward:
        return _frame_sources(store, root, node, list(found)[-1])
    holds: dict[str, Json] = {}
    for ref, row in found.items():
        labels = sum(
            1 for one in _matching_rows(store, ref, "labels.jsonl", frame) if one["frame"] == frame
        )
        holds[ref] = {"holds": {"role": row.get("role") or "none", "labels": labels}}
    for kind in (Selection.KIND, LabelBatch.KIND):
        holds |= {ref: {} for ref in _refs_containing(store, kind, frame)}
    return with_root(trace_downstream(store, *holds), root, node, holds)


def _frame_sources(store: Store, root: Ref, node: Json, dataset: Ref) -> LineageGraph:
    """A frame's drive, and whose labels are on it in its newest dataset."""
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
    holds: dict[str, Json] = {}
    frames = boxes = 0
    quoted = json.dumps(name, ensure_ascii=False)
    for ref in _refs_containing(store, LabelSet.KIND, quoted):
        for who in store.get(ref, LabelSet).annotators:
            if who.id == name:
                holds[ref] = {"holds": {"frames": who.frames, "boxes": who.boxes}}
                frames, boxes = frames + who.frames, boxes + who.boxes
    for ref in store.refs(DatasetVersion.KIND):
        rows = [
            r for r in _matching_rows(store, ref, "labels.jsonl", quoted) if r["annotator"] == name
        ]
        if rows:
            on = len({row["frame"] for row in rows})
            holds[ref] = {"holds": {"frames": on, "labels": len(rows)}}
    if not holds:
        hint = "The lineage of a dataset names its annotators"
        raise RecordError("nobody of this name labeled here", where=f"annotator/{name}", hint=hint)
    root = f"annotator/{name}"
    node: Json = {"kind": "annotator", "name": name, "frames": frames, "boxes": boxes}
    if not forward:
        return LineageGraph({root: node}, (), root)
    return with_root(trace_downstream(store, *holds), root, node, holds)


def _frame_rows(store: Store, prefix: str) -> Iterator[tuple[Ref, Json]]:
    """Each dataset's row of the frames whose digest begins so, oldest dataset first."""
    for ref in store.refs(DatasetVersion.KIND):
        for row in _matching_rows(store, ref, "frames.jsonl", f'"{prefix}'):
            if row["id"].startswith(prefix):
                yield ref, row


def _matching_rows(store: Store, ref: Ref, name: str, text: str) -> Iterator[Json]:
    """Rows of a payload file that hold ``text``: found as bytes, parsed only then."""
    content, wanted = store.payload(ref, name).read_bytes(), text.encode()
    at = content.find(wanted)
    while at >= 0:
        start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
        end = len(content) if end < 0 else end
        yield json.loads(content[start:end])
        at = content.find(wanted, end)


def _refs_containing(store: Store, kind: str, text: str) -> list[Ref]:
    """Records of a kind whose own text holds ``text``."""
    wanted = text.encode()
    return [
        ref
        for ref in store.refs(kind)
        if wanted in (store.folder(ref) / "record.json").read_bytes()
    ]
