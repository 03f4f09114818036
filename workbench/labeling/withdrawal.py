"""Labelers or frames that may no longer be used: a new dataset version, and who learned from them.

Nothing is erased: records are immutable. Whoever has to erase images as well deletes the media
files of the frames named; every version that holds them then says that they are missing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from workbench.errors import ParameterError
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, kind_of
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Label, Role
from workbench.records.store import Store
from workbench.records.types import (
    Checkpoint,
    DatasetVersion,
    ExportBundle,
    LabelSet,
    Release,
    Withdrawal,
)

_LEARNED_FROM = (Role.SEED, Role.TRAIN, Role.VAL)


@dataclass(frozen=True)
class Withdrawn:
    """``dataset`` is the new version; ``models`` learned from what was withdrawn."""

    dataset: Ref
    withdrawal: Ref
    frames_removed: int
    labels_removed: int
    frames_back_in_pool: int
    models: tuple[Ref, ...]


def withdraw(
    store: Store,
    dataset_ref: Ref,
    *,
    annotators: Collection[str] = (),
    frames: Collection[Digest] = (),
    reason: str,
) -> Withdrawn:
    """Keep a version of a dataset without some labelers' work or without some frames.

    A training frame that loses its labeler goes back to the pool, to be labeled again: what is left
    of its labels is not all that there is to see. A frame that judges models (``val``, ``safety``,
    ``blind``) is left out instead, because half-labeled it would count what is there as false.

    Raises:
        ParameterError: There is nothing of theirs in the dataset, or no reason is given.
    """
    if not reason.strip():
        raise ParameterError("a withdrawal needs a reason", hint="Such as: consent withdrawn")
    dataset = datasets.load(store, dataset_ref)
    gone = frozenset(frames) & {frame.id for frame in dataset.frames}
    touched = _answered(store, dataset_ref, frozenset(annotators)) | {
        label.frame for label in dataset.labels if label.annotator in annotators
    }
    touched = touched - gone
    if not gone and not touched:
        raise ParameterError(
            "nothing of what is withdrawn is in this dataset",
            where=dataset_ref,
            hint="`workbench lineage` lists its annotators and frames",
        )
    result = _without(dataset, gone, touched, annotators)
    removed = len(dataset.labels) - len(result.labels)
    models = tuple(_learned_from(store, gone, frozenset(annotators)))
    record = Withdrawal(
        dataset=dataset_ref,
        annotators=tuple(sorted(annotators)),
        frames=tuple(sorted(gone)),
        reason=reason,
        labels_removed=removed,
    )
    withdrawal = store.put(record, {"models.json": json.dumps(models).encode()})
    ref = datasets.save(store, result, made_by="withdraw", parents=(dataset_ref, withdrawal))
    left = {frame.id: frame for frame in result.frames}
    back = sum(frame in left and left[frame].role is Role.POOL for frame in touched)
    lost = len(dataset.frames) - len(result.frames)
    return Withdrawn(ref, withdrawal, lost, removed, back, models)


def _without(
    dataset: Dataset,
    gone: Collection[Digest],
    touched: Collection[Digest],
    annotators: Collection[str],
) -> Dataset:
    def kept(frame: Frame) -> Frame | None:
        if frame.id in gone:
            return None
        if frame.id not in touched:
            return frame
        if frame.role in (Role.TRAIN, Role.POOL, None):
            return frame.model_copy(update={"role": Role.POOL})
        return None

    frames = tuple(one for one in map(kept, dataset.frames) if one is not None)
    ids = {frame.id for frame in frames}
    labels = tuple(
        label
        for label in dataset.labels
        if label.frame in ids and label.frame not in touched and label.annotator not in annotators
    )
    drives = {frame.drive for frame in frames}
    return replace(
        dataset,
        frames=frames,
        labels=labels,
        drives=tuple(drive for drive in dataset.drives if drive.id in drives),
        ref=None,
    )


def _answered(store: Store, dataset_ref: Ref, annotators: frozenset[str]) -> set[Digest]:
    """Frames that these labelers' answers decided, also where the answer was that nothing is there.

    Only label sets that a version came from count.
    """
    found: set[Digest] = set()
    if not annotators:
        return found
    for labelset in _label_sets(store, dataset_ref):
        by_frame: dict[Digest, set[str]] = {}
        for row in datasets.read_lines(store.payload(labelset, "answers.jsonl"), AnswerRow):
            if not row.skipped:
                by_frame.setdefault(row.frame, set()).add(row.annotator)
        found |= {frame for frame, people in by_frame.items() if people <= annotators}
    return found


def _label_sets(store: Store, dataset_ref: Ref) -> Iterator[Ref]:
    waiting, seen = [dataset_ref], set()
    while waiting:
        ref = waiting.pop()
        if ref in seen or not store.exists(ref):
            continue
        seen.add(ref)
        if kind_of(ref) == LabelSet.KIND:
            yield ref
        elif kind_of(ref) == DatasetVersion.KIND:
            waiting += store.get(ref, DatasetVersion).parents


def _learned_from(
    store: Store, frames: frozenset[Digest], annotators: frozenset[str]
) -> Iterator[Ref]:
    """Checkpoints trained on withdrawn frames or labels, then bundles and releases made of them."""
    tainted: dict[Ref, bool] = {}
    found: set[Ref] = set()
    for ref in store.refs(Checkpoint.KIND):
        record = store.get(ref, Checkpoint)
        if record.dataset not in tainted:
            tainted[record.dataset] = store.exists(record.dataset) and _holds(
                store, record.dataset, frames, annotators
            )
        # What began as a tainted model's weights has learned from them too.
        if tainted[record.dataset] or record.parent in found:
            found.add(ref)
            yield ref
    for ref in store.refs(ExportBundle.KIND):
        if store.get(ref, ExportBundle).checkpoint in found:
            found.add(ref)
            yield ref
    for ref in store.refs(Release.KIND):
        if store.get(ref, Release).bundle in found:
            yield ref


def _holds(
    store: Store, dataset_ref: Ref, frames: frozenset[Digest], annotators: frozenset[str]
) -> bool:
    rows = datasets.read_lines(store.payload(dataset_ref, "frames.jsonl"), Frame)
    learned = {frame.id for frame in rows if frame.role in _LEARNED_FROM}
    if learned & frames or learned & _answered(store, dataset_ref, annotators):
        return True
    labels = datasets.read_lines(store.payload(dataset_ref, "labels.jsonl"), Label)
    return any(label.annotator in annotators and label.frame in learned for label in labels)
