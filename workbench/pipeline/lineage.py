"""What came from what, read from the records alone.

Records name what they were made from; run records tie outputs to the notebook, environment and
inputs that made them. Frames, labels and drives appear as counted groups of their dataset.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from workbench.records import dataset as datasets
from workbench.records.base import Record, Ref, digest_of, kind_of, refs_in
from workbench.records.frames import Drive, Label
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


@dataclass(frozen=True)
class Graph:
    """Nodes by id, and edges that point from what was used to what was made of it."""

    nodes: dict[str, Json]
    edges: tuple[tuple[str, str], ...]

    def as_json(self) -> Json:
        return {
            "nodes": [{"id": name, **node} for name, node in sorted(self.nodes.items())],
            "edges": [{"from": start, "to": end} for start, end in sorted(self.edges)],
        }


def trace(store: Store, ref: Ref) -> Graph:
    """Everything that ``ref`` came from, down to drives and annotators."""
    makers = _makers(store)
    nodes: dict[str, Json] = {}
    edges: set[tuple[str, str]] = set()
    waiting = [ref]
    while waiting:
        current = waiting.pop()
        if current in nodes:
            continue
        if not store.exists(current):
            missing = {"kind": kind_of(current), "digest": digest_of(current), "missing": True}
            nodes[current] = missing
            continue
        record = store.load(current)
        nodes[current] = _describe(current, record)
        for name, group in _groups(store, current, record).items():
            nodes[name] = group
            edges.add((name, current))
        sources = _sources(record)
        made_by = makers.get(current)
        if made_by is not None and made_by != current:
            sources.append(made_by)
        for source in sources:
            edges.add((source, current))
            waiting.append(source)
    return Graph(nodes, tuple(edges))


def _sources(record: Record) -> list[Ref]:
    """What a record was made from. A run's outputs come from it, not it from them."""
    body = record.model_dump(mode="json")
    if isinstance(record, StepRun):
        body.pop("outputs")
    return refs_in(body)


def _makers(store: Store) -> dict[Ref, Ref]:
    """Output to the run that made it first."""
    makers: dict[Ref, Ref] = {}
    for run in store.refs(StepRun.KIND):
        for output in store.get(run, StepRun).outputs.values():
            makers.setdefault(output, run)
    return makers


def _describe(ref: Ref, record: Record) -> Json:
    body = record.model_dump(mode="json")
    plain = {key: body[key] for key in _SHOWN.get(record.KIND, ()) if key in body}
    return {"kind": record.KIND, "digest": digest_of(ref), **plain}


_SHOWN: dict[str, tuple[str, ...]] = {
    "dataset": ("name", "frames", "labels", "drives", "made_by", "simulated", "quarantined"),
    "selection": ("budget", "method", "seed"),
    "batch": ("overlap",),
    "label": ("labels", "agreement", "simulated"),
    "checkpoint": ("architecture", "training", "conditions"),
    "bundle": ("parity",),
    "gates": ("verdict", "simulated", "gates"),
    "release": ("model", "verdict", "promoted", "key", "signature"),
    "notebook": ("name", "code"),
    "environment": ("python", "distributions", "machine"),
    "run": ("step", "key", "parameters", "metrics"),
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
    labels = datasets.read_lines(store.payload(ref, "labels.jsonl"), Label)
    drives = datasets.read_lines(store.payload(ref, "drives.jsonl"), Drive)
    short = digest_of(ref)[:12]
    groups: dict[str, Json] = {
        f"frame/{short}": {"kind": "frame", "digest": digest_of(ref), "count": record.frames},
        f"drive/{short}": {
            "kind": "drive",
            "digest": digest_of(ref),
            "count": record.drives,
            "names": [drive.id for drive in drives],
        },
    }
    for origin, count in sorted(Counter(label.origin.value for label in labels).items()):
        annotators = sorted({label.annotator for label in labels if label.origin == origin})
        groups[f"label/{short}/{origin}"] = {
            "kind": "label",
            "digest": digest_of(ref),
            "origin": origin,
            "count": count,
            "annotators": annotators,
        }
    return groups


def as_text(graph: Graph, root: Ref) -> str:
    """The graph as a tree below ``root``; what hangs below a node is shown once."""
    sources: dict[str, list[str]] = {}
    for start, end in sorted(graph.edges):
        sources.setdefault(end, []).append(start)
    lines: list[str] = []
    seen: set[str] = set()

    def show(name: str, depth: int) -> None:
        node = graph.nodes[name]
        again = name in seen
        seen.add(name)
        lines.append(f"{'  ' * depth}{_line(name, node)}{'  (see above)' if again else ''}")
        if not again:
            for source in sorted(sources.get(name, []), key=_order):
                show(source, depth + 1)

    show(root, 0)
    return "\n".join(lines)


def _order(name: str) -> tuple[int, str]:
    kind = name.partition("/")[0]
    return NODE_KINDS.index(kind) if kind in NODE_KINDS else len(NODE_KINDS), name


def _line(name: str, node: Json) -> str:
    words = [f"{node['kind']:11} {node['digest'][:12]}"]
    for key in ("name", "step", "model", "made_by", "verdict", "origin", "method"):
        if key in node:
            words.append(str(node[key]))
    for key in ("frames", "labels", "drives", "count", "boxes"):
        if key in node:
            words.append(f"{key} {node[key]}")
    if node.get("missing"):
        words.append("MISSING from the store")
    if node.get("simulated"):
        words.append("simulated")
    return "  ".join(words)
