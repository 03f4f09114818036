"""Lineage of what is no record of its own: one frame, or all that one person labeled.

``frame/PREFIX`` (or a bare digest that is no record's) and ``annotator/NAME``. Which datasets,
selections, batches and label sets hold it is read from them; what was made of those is lineage.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workbench.errors import RecordError
from workbench.pipeline.lineage import tracing as lineage
from workbench.pipeline.lineage.tracing import Graph
from workbench.records.base import Ref, make_ref
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, DatasetVersion, LabelBatch, LabelSet, Selection

Json = dict[str, Any]

_FRAME = re.compile(r"^(?:frame/|sha256:)([0-9a-f]{4,64})$")
_ANNOTATOR = re.compile(r"^annotator/(.+)$")


@dataclass(frozen=True)
class Subject:
    """A frame (``name`` is its digest, or the beginning of it) or an annotator, by name."""

    kind: str
    name: str


def parse(text: str) -> Subject | None:
    """What ``text`` asks about, if it has the form of a frame or an annotator."""
    frame, annotator = _FRAME.match(text), _ANNOTATOR.match(text)
    if frame:
        return Subject("frame", frame.group(1))
    return Subject("annotator", annotator.group(1)) if annotator else None


def graph_of(store: Store, subject: Subject, *, forward: bool) -> Graph:
    """What holds a subject and was made of that, or what the subject itself came from.

    Raises:
        RecordError: Nothing here holds it, or several frames begin so.
    """
    return (
        _frame(store, subject.name, forward)
        if subject.kind == "frame"
        else _annotator(store, subject.name, forward)
    )


def holder_of_file(store: Store, prefix: str, text: str) -> Ref:
    """The record that holds a file of this digest: from a model on a car back to its bundle.

    Args:
        text: What was asked for, for the message.

    Raises:
        RecordError: No record holds such a file, or several do.
    """
    wanted = f'"sha256":"{prefix}'
    found = [ref for kind in RECORD_TYPES for ref in _naming(store, kind, wanted)]
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


def _frame(store: Store, prefix: str, forward: bool) -> Graph:
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
        return _sources_of_frame(store, root, node, list(found)[-1])
    holds: dict[str, Json] = {}
    for ref, row in found.items():
        labels = sum(
            1 for one in _lines(store, ref, "labels.jsonl", frame) if one["frame"] == frame
        )
        holds[ref] = {"holds": {"role": row.get("role") or "none", "labels": labels}}
    for kind in (Selection.KIND, LabelBatch.KIND):
        holds |= {ref: {} for ref in _naming(store, kind, frame)}
    return lineage.joined(lineage.follow(store, *holds), root, node, holds)


def _sources_of_frame(store: Store, root: Ref, node: Json, dataset: Ref) -> Graph:
    """A frame's drive, and whose labels are on it in its newest dataset."""
    nodes: dict[str, Json] = {root: node}
    for drive in _lines(store, dataset, "drives.jsonl", node["drive"]):
        if drive["id"] == node["drive"]:
            facts = {key: value for key, value in drive.items() if key != "id"}
            nodes[f"drive/{drive['id']}"] = {"kind": "drive", "name": drive["id"], **facts}
    labels: Counter[tuple[str, str]] = Counter(
        (row["origin"], row["annotator"])
        for row in _lines(store, dataset, "labels.jsonl", node["digest"])
        if row["frame"] == node["digest"]
    )
    for (origin, who), count in sorted(labels.items()):
        facts = {"kind": "label", "origin": origin, "name": who, "count": count}
        nodes[f"label/{origin}/{who}"] = facts
    return Graph(nodes, tuple((name, root) for name in nodes if name != root), root)


def _annotator(store: Store, name: str, forward: bool) -> Graph:
    holds: dict[str, Json] = {}
    frames = boxes = 0
    quoted = json.dumps(name, ensure_ascii=False)
    for ref in _naming(store, LabelSet.KIND, quoted):
        for who in store.get(ref, LabelSet).annotators:
            if who.id == name:
                holds[ref] = {"holds": {"frames": who.frames, "boxes": who.boxes}}
                frames, boxes = frames + who.frames, boxes + who.boxes
    for ref in store.refs(DatasetVersion.KIND):
        rows = [r for r in _lines(store, ref, "labels.jsonl", quoted) if r["annotator"] == name]
        if rows:
            on = len({row["frame"] for row in rows})
            holds[ref] = {"holds": {"frames": on, "labels": len(rows)}}
    if not holds:
        hint = "The lineage of a dataset names its annotators"
        raise RecordError("nobody of this name labeled here", where=f"annotator/{name}", hint=hint)
    root = f"annotator/{name}"
    node: Json = {"kind": "annotator", "name": name, "frames": frames, "boxes": boxes}
    if not forward:
        return Graph({root: node}, (), root)
    return lineage.joined(lineage.follow(store, *holds), root, node, holds)


def _frame_rows(store: Store, prefix: str) -> Iterator[tuple[Ref, Json]]:
    """Each dataset's row of the frames whose digest begins so, oldest dataset first."""
    for ref in store.refs(DatasetVersion.KIND):
        for row in _lines(store, ref, "frames.jsonl", f'"{prefix}'):
            if row["id"].startswith(prefix):
                yield ref, row


def _lines(store: Store, ref: Ref, name: str, text: str) -> Iterator[Json]:
    """Rows of a payload file that hold ``text``: found as bytes, parsed only then."""
    content, wanted = store.payload(ref, name).read_bytes(), text.encode()
    at = content.find(wanted)
    while at >= 0:
        start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
        end = len(content) if end < 0 else end
        yield json.loads(content[start:end])
        at = content.find(wanted, end)


def _naming(store: Store, kind: str, text: str) -> list[Ref]:
    """Records of a kind whose own text holds ``text``."""
    wanted = text.encode()
    return [
        ref
        for ref in store.refs(kind)
        if wanted in (store.folder(ref) / "record.json").read_bytes()
    ]
