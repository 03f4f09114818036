"""Inspect: from a dataset version to a record of how clean it is. The room's recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from workbench.curation.embedding import embed
from workbench.curation.hygiene import coverage, duplicates, leakage
from workbench.curation.hygiene.alike import Likeness, measure
from workbench.curation.hygiene.coverage import Cell, Target
from workbench.curation.hygiene.duplicates import Cluster
from workbench.curation.hygiene.fingerprints import Fingerprints, fingerprints
from workbench.curation.hygiene.leakage import Leak, LeakageRules
from workbench.curation.neighbours import directions
from workbench.errors import DataError
from workbench.perception import label_errors
from workbench.perception.label_errors import LabelError
from workbench.perception.predictor import TorchPredictor, load_checkpoint, predict_frames
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, Row
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import Inspection, Prediction
from workbench.workspace import Workspace

Progress = Callable[[int, int], None]

_LEAKS, _DUPLICATES = "leaks.jsonl", "duplicates.jsonl"
_COVERAGE, _ERRORS = "coverage.jsonl", "label_errors.jsonl"


class InspectionRules(Row):
    """What is asked of a dataset version."""

    leakage: LeakageRules = LeakageRules()
    near_share: float = duplicates.SHARE
    target: Target = Target()


@dataclass(frozen=True)
class Found:
    """What an inspection found, each worst first."""

    record: Inspection
    leaks: tuple[Leak, ...]
    clusters: tuple[Cluster, ...]
    cells: tuple[Cell, ...]
    errors: tuple[LabelError, ...]


def inspect(
    store: Store,
    dataset_ref: Ref,
    model_ref: Ref | None = None,
    rules: InspectionRules | None = None,
    *,
    labels: bool = True,
    progress: Progress | None = None,
) -> Ref:
    """Look for duplicates, leaks between roles, thin conditions and labels that look wrong.

    Fingerprints and embeddings that are on disk are not computed again, so a killed inspection
    goes on and a second one is quick.

    Args:
        model_ref: Whose view of the frames counts. Without one, likeness is judged by fingerprint
            alone and labels are not judged.
        labels: Whether labels are held against what the model predicts, the dearest part.

    Raises:
        DataError: The dataset has no frames, or not one can be read.
    """
    rules = rules or InspectionRules()
    dataset = datasets.load(store, dataset_ref)
    if not dataset.frames:
        raise DataError("there are no frames to inspect", where=dataset_ref)
    prints = fingerprints(store.workspace, dataset.frames, progress)
    model = load_checkpoint(store, model_ref) if model_ref else None
    like, pixels = likeness(store, dataset.frames, prints, model, progress)
    leaks = leakage.check(dataset, like, rules.leakage)
    twins = duplicates.find(like, pixels, measure(like, rules.near_share))
    cells = coverage.coverage_of(dataset, rules.target)
    errors = _label_errors(store, dataset, model) if model and labels else None
    told = {
        "rules": rules.model_dump(mode="json"),
        "near": twins.yardstick.told,
        "leak": leaks.yardstick.told,
        "unreadable": [{"frame": frame, "reason": why} for frame, why in prints.left_out],
    }
    record = Inspection(
        dataset=dataset_ref,
        model=model_ref,
        verdict=leaks.verdict,
        gates=leaks.gates,
        exact=_surplus(twins.exact),
        near=_surplus(twins.near),
        thin=len(coverage.thin(cells)),
        suspects=None if errors is None else len(errors),
        parameters=told,
        simulated=dataset.simulated,
    )
    return _keep(store, Found(record, leaks.leaks, twins.clusters, cells, tuple(errors or ())))


def _keep(store: Store, found: Found) -> Ref:
    payload = {
        _LEAKS: datasets.lines(found.leaks),
        _DUPLICATES: datasets.lines(found.clusters),
        _COVERAGE: datasets.lines(found.cells),
        _ERRORS: datasets.lines(found.errors),
    }
    return store.put(found.record, payload)


def read(store: Store, ref: Ref) -> Found:
    """An inspection with all that it found."""
    record = store.get(ref, Inspection)
    return Found(
        record,
        leaks=datasets.read_lines(store.payload(ref, _LEAKS), Leak),
        clusters=datasets.read_lines(store.payload(ref, _DUPLICATES), Cluster),
        cells=datasets.read_lines(store.payload(ref, _COVERAGE), Cell),
        errors=datasets.read_lines(store.payload(ref, _ERRORS), LabelError),
    )


def likeness(
    store: Store,
    frames: Iterable[Frame],
    prints: Fingerprints,
    model: TorchPredictor | None,
    progress: Progress | None = None,
) -> tuple[Likeness, tuple[str, ...]]:
    """What frames are compared by, and the digests of their pixels; unreadable frames are out.

    Raises:
        DataError: Not one frame can be read.
    """
    if not prints.frames:
        raise DataError(
            "not one frame can be read",
            where=prints.left_out[0][0] if prints.left_out else None,
            hint="Ingest the source again: unreadable images are quarantined there",
        )
    by_id = {frame.id: frame for frame in frames}
    wanted = [by_id[name] for name in prints.frames]
    rows = {name: row for row, name in enumerate(prints.frames)}
    if model is None:
        return Likeness(tuple(wanted), prints.hashes), prints.pixels
    seen = embed(store.workspace, model, wanted, progress)
    kept = np.array([rows[name] for name in seen.frames])
    like = Likeness(
        tuple(by_id[name] for name in seen.frames), prints.hashes[kept], directions(seen.vectors)
    )
    return like, tuple(prints.pixels[row] for row in kept.tolist())


def alike_across_cuts(
    place: Workspace, dataset: Dataset, progress: Progress | None = None
) -> tuple[Digest, ...]:
    """Tuned and judged frames that look like one of their own drive on another side of its cut.

    A car that waits longer than the split's gap sees one view on both sides of it: these frames
    belong to the gap. Where whole drives have one role, nothing was cut and likeness is an alarm,
    not a gap, so there are none.
    """
    if dataset.split.get("method") != "time blocks":
        return ()
    prints = fingerprints(place, dataset.frames, progress)
    by_id = {frame.id: frame for frame in dataset.frames}
    like = Likeness(tuple(by_id[name] for name in prints.frames), prints.hashes)
    drive = {frame.id: frame.drive for frame in dataset.frames}
    leaks = leakage.check(dataset, like).leaks
    return tuple(
        leak.first
        for leak in leaks
        if leak.kind == "embedding" and drive[leak.first] == drive[leak.second]
    )


def _label_errors(store: Store, dataset: Dataset, model: TorchPredictor) -> list[LabelError]:
    frames = label_errors.labelled(dataset)
    predictions: Iterable[Prediction] = predict_frames(store.workspace, model, frames)
    return label_errors.find(dataset, predictions)


def _surplus(clusters: Iterable[Cluster]) -> int:
    return sum(len(cluster.frames) - 1 for cluster in clusters)
