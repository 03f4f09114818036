"""Replay of incidents: does a model find the objects that an earlier one missed?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import DataError
from workbench.core.text import counted
from workbench.data import incidents
from workbench.detection.boxes import iou_matrix
from workbench.detection.model import Model
from workbench.evaluation.misses import Miss
from workbench.records.base import FrozenModel, GateResult, Ref, Verdict
from workbench.records.dataset import Dataset, load_dataset
from workbench.records.evidence_types import FoundIn, Incident, IncidentSuite
from workbench.records.frames import Label, Role
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store
from workbench.records.types import Prediction

__all__ = ["IncidentResult", "add_incident", "replay_incidents"]

GATE_NAME = "incidents"
"""Name of the gate that incidents are judged by; no rule of a gates file may have it."""


class IncidentResult(FrozenModel):
    """How a model did on one incident.

    Attributes:
        found: Objects found, of ``objects``.
        missed: The objects that were not found, in words.
        learned: Frames that the model was trained on: finding objects there proves little.
    """

    incident: Ref
    name: str
    verdict: Verdict
    objects: int
    found: int
    missed: tuple[str, ...] = ()
    learned: int = 0


@dataclass(frozen=True)
class _Object:
    label: Label
    score: float
    iou: float


def add_incident(
    dataset: Dataset,
    name: str,
    missed: Iterable[Label | Miss],
    *,
    why: str,
    by: str,
    found_in: FoundIn = "notebook",
) -> Ref:
    """Keep objects that a model missed as a permanent regression case.

    From then on every candidate that is judged on this label schema has to find them.

    Args:
        dataset: The dataset version, or the part of it, that was predicted on.
        name: Of the incident; lower-case letters, digits and ``._-``.
        missed: Labels, or the misses that ``predictions.why_missed()`` returns.
        why: What happened, in a sentence.
        by: Who adds it.

    Raises:
        ParameterError: A text is invalid, no object is given, or the name is taken.
    """
    if dataset.workspace is None:
        raise DataError("this dataset was built in memory and has no images", where=dataset.name)
    labels = [one.label if isinstance(one, Miss) else one for one in missed]
    store = Store(dataset.workspace)
    return incidents.add_incident(store, name, dataset, labels, why=why, by=by, found_in=found_in)


def replay_incidents(
    store: Store,
    model: Model,
    suite: IncidentSuite | None,
    *,
    schema: str,
    threshold: float | None = None,
) -> tuple[IncidentResult, ...]:
    """Run a model on the pinned frames of incidents.

    Args:
        store: With the incidents.
        model: The candidate, as it will be deployed.
        suite: The active incidents; None replays none.
        schema: Only incidents of a label schema with this name.
        threshold: Score from which on a box counts; the model's by default.

    Raises:
        VerificationError: An incident, or an image of it, is missing or was changed.
    """
    learned = _learned_frames(store, model) if suite else frozenset[str]()
    results = []
    for ref in suite.incidents if suite else ():
        dataset = incidents.load_incident(store, ref)
        record = store.get(ref, Incident)
        if record.label_schema.name != schema:
            continue
        boxes = model.predict(dataset, progress=_silent).above(threshold)
        missed = missed_labels(dataset.labels, boxes, iou=record.iou)
        results.append(
            IncidentResult(
                incident=ref,
                name=record.name,
                verdict=Verdict.FAIL if missed else Verdict.PASS,
                objects=len(dataset.labels),
                found=len(dataset.labels) - len(missed),
                missed=tuple(_in_words(label) for label in missed),
                learned=len(learned & set(record.frames)),
            )
        )
    return tuple(results)


def missed_labels(
    labels: Sequence[Label], boxes: Sequence[Prediction], *, iou: float = 0.5
) -> tuple[Label, ...]:
    """The labels without a box of their class and frame; each box finds one label, best first."""
    pairs: list[tuple[float, int, int]] = []
    for row, label in enumerate(labels):
        at = [n for n, box in enumerate(boxes) if (box.frame, box.cls) == (label.frame, label.cls)]
        if at:
            corners = np.array([boxes[n].box.xyxy for n in at], np.float32)
            overlaps = iou_matrix(np.array([label.box.xyxy], np.float32), corners)[0]
            pairs += [(float(v), row, n) for n, v in zip(at, overlaps, strict=True) if v >= iou]
    found: set[int] = set()
    used: set[int] = set()
    for _, row, n in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if row not in found and n not in used:
            found.add(row)
            used.add(n)
    return tuple(label for row, label in enumerate(labels) if row not in found)


def gate_result(results: Sequence[IncidentResult]) -> GateResult:
    """All incidents as one required gate: it passes only if every object is found."""
    failed = [one for one in results if one.verdict is not Verdict.PASS]
    found, objects = sum(one.found for one in results), sum(one.objects for one in results)
    why = f"{len(results) - len(failed)} of {counted(len(results), 'incident')} passed"
    if failed:
        why += f"; failed: {', '.join(one.name for one in failed[:5])}"
    if learned := sum(one.learned for one in results):
        why += f"; the model was trained on {counted(learned, 'frame')} of them"
    return GateResult(
        name=GATE_NAME,
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        n=objects,
        unit="objects",
        value=found / objects,
        bound=1.0,
        method="every missed object of every active incident is found; no interval: all are judged",
        slice="incidents",
        why=why,
    )


def _learned_frames(store: Store, model: Model) -> frozenset[str]:
    record = store.get(model.checkpoint, Checkpoint)
    trained_on = load_dataset(store, record.dataset)
    return frozenset(one.id for one in trained_on.frames if one.role in (Role.SEED, Role.TRAIN))


def _in_words(label: Label) -> str:
    box = label.box
    place = f"{box.w:.0f}x{box.h:.0f} px at ({box.x:.0f}, {box.y:.0f})"
    return f"{label.cls} {place} of {label.frame[:12]}"


def _silent(done: int, total: int) -> None:
    """No progress bar: incidents are few frames."""
