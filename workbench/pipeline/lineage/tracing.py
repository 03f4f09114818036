"""What came from what, both ways, read from the records alone.

Records name what they were made from; run records tie outputs to the notebook, environment and
inputs that made them. Frames, labels and drives appear as counted groups of their dataset, or one
by one where one is asked for, see `workbench.pipeline.lineage.subjects`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import RecordError
from workbench.pipeline.lineage.edges import Edges
from workbench.records.base import Record, Ref, digest_of, kind_of
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelSet, StepRun

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
class Graph:
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


def trace(store: Store, ref: Ref) -> Graph:
    """Everything that ``ref`` came from, down to drives and annotators."""
    links = Edges(store)
    nodes: dict[str, Json] = {}
    edges: set[tuple[str, str]] = set()
    waiting = [ref]
    while waiting:
        current = waiting.pop()
        if current in nodes:
            continue
        record, nodes[current] = _looked_up(store, current)
        if record is None:
            continue
        for name, group in _groups(store, current, record).items():
            nodes[name] = group
            edges.add((name, current))
        for source in links.came_from(current):
            edges.add((source, current))
            waiting.append(source)
    return Graph(nodes, tuple(edges), ref)


def follow(store: Store, *starts: Ref) -> Graph:
    """Everything that was made from any of ``starts``: runs, models, bundles, releases."""
    links = Edges(store)
    nodes: dict[str, Json] = {}
    edges: set[tuple[str, str]] = set()
    waiting = list(starts)
    while waiting:
        current = waiting.pop()
        if current in nodes:
            continue
        _, nodes[current] = _looked_up(store, current)
        for made in links.made_of(current):
            edges.add((current, made))
            waiting.append(made)
    return Graph(nodes, tuple(edges), starts[0] if starts else "", forward=True)


def of(store: Store, ref: Ref, *, forward: bool) -> Graph:
    """`follow` or `trace`."""
    return follow(store, ref) if forward else trace(store, ref)


def joined(graph: Graph, root: str, node: Json, notes: Mapping[str, Json]) -> Graph:
    """``graph`` seen from a new ``root``, from which each key of ``notes`` was made.

    Args:
        notes: Node to what is to be added to what is told about it.
    """
    nodes = {name: {**told, **notes.get(name, {})} for name, told in graph.nodes.items()}
    edges = (*graph.edges, *((root, name) for name in notes))
    return Graph({root: node, **nodes}, edges, root, graph.forward)


def without_short_cuts(graph: Graph) -> set[tuple[str, str]]:
    """The edges less those that only repeat the way over a run, from its inputs to its outputs."""
    after: dict[str, set[str]] = defaultdict(set)
    for start, end in graph.edges:
        after[start].add(end)
    over_runs: dict[str, set[str]] = defaultdict(set)
    for start, end in graph.edges:
        if graph.nodes[end]["kind"] == StepRun.KIND:
            over_runs[start] |= after[end]
    return {(start, end) for start, end in graph.edges if end not in over_runs[start]}


def _looked_up(store: Store, ref: Ref) -> tuple[Record | None, Json]:
    """A record and what to tell of it; what is gone or damaged is told, not raised."""
    node = {"kind": kind_of(ref), "digest": digest_of(ref)}
    if not store.exists(ref):
        return None, {**node, "missing": True}
    try:
        record = store.load(ref)
    except RecordError as error:
        return None, {**node, "damaged": error.what}
    body = record.model_dump(mode="json", include=set(_SHOWN.get(record.KIND, ())))
    return record, {**node, **body}


_SHOWN: dict[str, tuple[str, ...]] = {
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


def _groups(store: Store, ref: Ref, record: Record) -> dict[str, Json]:
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
    drives = [row["id"] for row in _rows(store.payload(ref, "drives.jsonl"))]
    labels: Counter[tuple[str, str]] = Counter(
        (row["origin"], row["annotator"]) for row in _rows(store.payload(ref, "labels.jsonl"))
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


def _rows(path: Path) -> list[Json]:
    """Rows as plain JSON: a pool has hundreds of thousands, and two fields of each are wanted."""
    with path.open("rb") as stream:
        return [json.loads(line) for line in stream]


def as_text(graph: Graph, root: Ref | None = None) -> str:
    """The graph as a tree below its root, without short cuts; what hangs below is shown once."""
    below: dict[str, list[str]] = {}
    for start, end in sorted(without_short_cuts(graph)):
        parent, child = (start, end) if graph.forward else (end, start)
        below.setdefault(parent, []).append(child)
    lines: list[str] = []
    seen: set[str] = set()
    waiting = [(root or graph.root, 0)]
    while waiting:
        name, depth = waiting.pop()
        again = name in seen and bool(below.get(name))
        seen.add(name)
        line = text_of(graph.nodes[name])
        lines.append(f"{'  ' * depth}{line}{'  (see above)' if again else ''}")
        if not again:
            children = sorted(below.get(name, []), key=_order, reverse=True)
            waiting.extend((child, depth + 1) for child in children)
    return "\n".join(lines)


def _order(name: str) -> tuple[int, str]:
    kind = name.partition("/")[0]
    return NODE_KINDS.index(kind) if kind in NODE_KINDS else len(NODE_KINDS), name


def text_of(node: Json) -> str:
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
