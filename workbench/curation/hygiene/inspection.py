"""Inspect a dataset version and keep the findings as an Inspection record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import DataError
from workbench.core.text import short_repr
from workbench.core.types import Progress
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

__all__ = [
    "InspectionFindings",
    "InspectionRules",
    "frame_features",
    "inspect_dataset",
    "read_findings",
    "similar_across_cuts",
]

_LEAKS, _DUPLICATES = "leaks.jsonl", "duplicates.jsonl"
_COVERAGE, _ERRORS = "coverage.jsonl", "label_errors.jsonl"


class InspectionRules(FrozenModel):
    """What to check a dataset version against.

    Attributes:
        leakage: Distances between the sides of a split.
        near_share: Share of consecutive pairs that are at least as similar as near duplicates.
        target: Required coverage.
    """

    leakage: LeakageRules = LeakageRules()
    near_share: float = duplicates.NEAR_DUPLICATE_SHARE
    target: CoverageTarget = CoverageTarget()


@short_repr
@dataclass(frozen=True)
class InspectionFindings:
    """Findings of an inspection, worst first.

    Attributes:
        record: The record.
        leaks: Pairs of frames on both sides of the split.
        clusters: Duplicates.
        cells: Coverage by condition and class.
        errors: Suspected label errors.
    """

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
    """Check a dataset version, and keep the findings as an Inspection record.

    Looks for duplicates, leaks between roles, thin conditions and suspected label errors.
    Fingerprints and embeddings on disk are not computed again.

    Args:
        store: Holds the records.
        dataset_ref: The dataset version.
        model_ref: Checkpoint for embeddings and label errors; without one, similarity is judged by
            fingerprint only and labels are not checked.
        rules: Thresholds.
        labels: Whether to compare labels with predictions, the slowest part.
        progress: Called with the number of frames done and their total.

    Returns:
        The reference of the Inspection.

    Raises:
        DataError: The dataset has no readable frame.
    """
    rules = rules or InspectionRules()
    dataset = datasets.load_dataset(store, dataset_ref)
    if not dataset.frames:
        raise DataError("the dataset has no frames", where=dataset_ref)
    fingerprints = compute_fingerprints(store.workspace, dataset.frames, progress)
    model = load_checkpoint(store, model_ref) if model_ref else None
    features, pixels = frame_features(store, dataset.frames, fingerprints, model, progress)
    leaks = leakage.check_leakage(dataset, features, rules.leakage)
    found_duplicates = duplicates.find_duplicates(
        features, pixels, measure_threshold(features, rules.near_share)
    )
    cells = coverage.dataset_coverage(dataset, rules.target)
    errors = _find_label_errors(store, dataset, model) if model and labels else None
    parameters = {
        "rules": rules.model_dump(mode="json"),
        "near": found_duplicates.threshold.description,
        "leak": leaks.threshold.description,
        "unreadable": [
            {"frame": frame, "reason": reason} for frame, reason in fingerprints.skipped
        ],
    }
    record = Inspection(
        dataset=dataset_ref,
        model=model_ref,
        verdict=leaks.verdict,
        gates=leaks.gates,
        exact=_redundant_count(found_duplicates.exact),
        near=_redundant_count(found_duplicates.near),
        thin=len(coverage.thin_cells(cells)),
        suspects=None if errors is None else len(errors),
        parameters=parameters,
        simulated=dataset.simulated,
    )
    return _save_findings(
        store,
        InspectionFindings(
            record, leaks.leaks, found_duplicates.clusters, cells, tuple(errors or ())
        ),
    )


def _save_findings(store: Store, findings: InspectionFindings) -> Ref:
    payload = {
        _LEAKS: datasets.to_json_lines(findings.leaks),
        _DUPLICATES: datasets.to_json_lines(findings.clusters),
        _COVERAGE: datasets.to_json_lines(findings.cells),
        _ERRORS: datasets.to_json_lines(findings.errors),
    }
    return store.put(findings.record, payload)


def read_findings(store: Store, ref: Ref) -> InspectionFindings:
    """Read an inspection with all its findings."""
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
    fingerprints: Fingerprints,
    model: TorchPredictor | None,
    progress: Progress | None = None,
) -> tuple[FrameFeatures, tuple[str, ...]]:
    """Features to compare frames by, and the digests of their pixels; unreadable frames are
    skipped.

    Args:
        store: Holds images and embeddings.
        frames: The frames.
        fingerprints: Their fingerprints.
        model: Checkpoint for embeddings; None compares hashes only.
        progress: Called with the number of frames embedded and their total.

    Raises:
        DataError: No frame is readable.
    """
    if not fingerprints.frames:
        raise DataError(
            f"no usable frames: all {len(fingerprints.skipped)} are unreadable",
            where=fingerprints.skipped[0][0] if fingerprints.skipped else None,
            hint="Ingest the source again, which quarantines unreadable images",
        )
    by_id = {frame.id: frame for frame in frames}
    readable = [by_id[name] for name in fingerprints.frames]
    rows = {name: row for row, name in enumerate(fingerprints.frames)}
    if model is None:
        return FrameFeatures(tuple(readable), fingerprints.hashes), fingerprints.pixels
    embeddings = embed(store.workspace, model, readable, progress)
    kept_rows = np.array([rows[name] for name in embeddings.frames])
    features = FrameFeatures(
        tuple(by_id[name] for name in embeddings.frames),
        fingerprints.hashes[kept_rows],
        unit_vectors(embeddings.vectors),
    )
    return features, tuple(fingerprints.pixels[row] for row in kept_rows.tolist())


def similar_across_cuts(
    workspace: Workspace, dataset: Dataset, progress: Progress | None = None
) -> tuple[Digest, ...]:
    """Tuned and judged frames similar to one of their own drive on another side of a split by time.

    A car that waits longer than the split's gap sees one scene on both sides, so these frames
    belong to the gap. Empty where whole drives have one role.

    Args:
        workspace: Holds the images.
        dataset: The dataset version.
        progress: Called with the number of frames done and their total.
    """
    if dataset.split.get("method") != "time blocks":
        return ()
    fingerprints = compute_fingerprints(workspace, dataset.frames, progress)
    by_id = {frame.id: frame for frame in dataset.frames}
    features = FrameFeatures(
        tuple(by_id[name] for name in fingerprints.frames), fingerprints.hashes
    )
    drive = {frame.id: frame.drive for frame in dataset.frames}
    leaks = leakage.check_leakage(dataset, features).leaks
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
