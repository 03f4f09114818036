"""Inspect a dataset version and keep the findings as an Inspection record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import DataError
from workbench.core.workspace import Workspace
from workbench.curation.embedding.compute import embed
from workbench.curation.hygiene import coverage, duplicates, leakage
from workbench.curation.hygiene.coverage import CoverageCell, CoverageTarget
from workbench.curation.hygiene.duplicates import DuplicateCluster, FrameFeatures, measure_threshold
from workbench.curation.hygiene.fingerprints import Fingerprints, compute_fingerprints
from workbench.curation.hygiene.leakage import Leak, LeakageRules
from workbench.curation.vectors import unit_vectors
from workbench.detection import label_errors
from workbench.detection.label_errors import LabelError
from workbench.detection.predictor import TorchPredictor, load_checkpoint, predict_frames
from workbench.records import dataset as datasets
from workbench.records.base import Digest, FrozenModel, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import Inspection, Prediction

Progress = Callable[[int, int], None]

_LEAKS, _DUPLICATES = "leaks.jsonl", "duplicates.jsonl"
_COVERAGE, _ERRORS = "coverage.jsonl", "label_errors.jsonl"


class InspectionRules(FrozenModel):
    """What is asked of a dataset version."""

    leakage: LeakageRules = LeakageRules()
    near_share: float = duplicates.NEAR_DUPLICATE_SHARE
    target: CoverageTarget = CoverageTarget()


@dataclass(frozen=True)
class InspectionFindings:
    """What an inspection found, each worst first."""

    record: Inspection
    leaks: tuple[Leak, ...]
    clusters: tuple[DuplicateCluster, ...]
    cells: tuple[CoverageCell, ...]
    errors: tuple[LabelError, ...]


def inspect_dataset(
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
    dataset = datasets.load_dataset(store, dataset_ref)
    if not dataset.frames:
        raise DataError("there are no frames to inspect", where=dataset_ref)
    prints = compute_fingerprints(store.workspace, dataset.frames, progress)
    model = load_checkpoint(store, model_ref) if model_ref else None
    like, pixels = frame_features(store, dataset.frames, prints, model, progress)
    leaks = leakage.check_leakage(dataset, like, rules.leakage)
    twins = duplicates.find_duplicates(like, pixels, measure_threshold(like, rules.near_share))
    cells = coverage.dataset_coverage(dataset, rules.target)
    errors = _find_label_errors(store, dataset, model) if model and labels else None
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
        exact=_redundant_count(twins.exact),
        near=_redundant_count(twins.near),
        thin=len(coverage.thin_cells(cells)),
        suspects=None if errors is None else len(errors),
        parameters=told,
        simulated=dataset.simulated,
    )
    return _save_findings(
        store, InspectionFindings(record, leaks.leaks, twins.clusters, cells, tuple(errors or ()))
    )


def _save_findings(store: Store, found: InspectionFindings) -> Ref:
    payload = {
        _LEAKS: datasets.to_json_lines(found.leaks),
        _DUPLICATES: datasets.to_json_lines(found.clusters),
        _COVERAGE: datasets.to_json_lines(found.cells),
        _ERRORS: datasets.to_json_lines(found.errors),
    }
    return store.put(found.record, payload)


def read_findings(store: Store, ref: Ref) -> InspectionFindings:
    """An inspection with all that it found."""
    record = store.get(ref, Inspection)
    return InspectionFindings(
        record,
        leaks=datasets.read_json_lines(store.payload(ref, _LEAKS), Leak),
        clusters=datasets.read_json_lines(store.payload(ref, _DUPLICATES), DuplicateCluster),
        cells=datasets.read_json_lines(store.payload(ref, _COVERAGE), CoverageCell),
        errors=datasets.read_json_lines(store.payload(ref, _ERRORS), LabelError),
    )


def frame_features(
    store: Store,
    frames: Iterable[Frame],
    prints: Fingerprints,
    model: TorchPredictor | None,
    progress: Progress | None = None,
) -> tuple[FrameFeatures, tuple[str, ...]]:
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
        return FrameFeatures(tuple(wanted), prints.hashes), prints.pixels
    seen = embed(store.workspace, model, wanted, progress)
    kept = np.array([rows[name] for name in seen.frames])
    like = FrameFeatures(
        tuple(by_id[name] for name in seen.frames), prints.hashes[kept], unit_vectors(seen.vectors)
    )
    return like, tuple(prints.pixels[row] for row in kept.tolist())


def similar_across_cuts(
    place: Workspace, dataset: Dataset, progress: Progress | None = None
) -> tuple[Digest, ...]:
    """Tuned and judged frames that look like one of their own drive on another side of its cut.

    A car that waits longer than the split's gap sees one view on both sides of it: these frames
    belong to the gap. Where whole drives have one role, nothing was cut and likeness is an alarm,
    not a gap, so there are none.
    """
    if dataset.split.get("method") != "time blocks":
        return ()
    prints = compute_fingerprints(place, dataset.frames, progress)
    by_id = {frame.id: frame for frame in dataset.frames}
    like = FrameFeatures(tuple(by_id[name] for name in prints.frames), prints.hashes)
    drive = {frame.id: frame.drive for frame in dataset.frames}
    leaks = leakage.check_leakage(dataset, like).leaks
    return tuple(
        leak.first
        for leak in leaks
        if leak.kind == "embedding" and drive[leak.first] == drive[leak.second]
    )


def _find_label_errors(store: Store, dataset: Dataset, model: TorchPredictor) -> list[LabelError]:
    frames = label_errors.labelled_frames(dataset)
    predictions: Iterable[Prediction] = predict_frames(store.workspace, model, frames)
    return label_errors.find_label_errors(dataset, predictions)


def _redundant_count(clusters: Iterable[DuplicateCluster]) -> int:
    return sum(len(cluster.frames) - 1 for cluster in clusters)
