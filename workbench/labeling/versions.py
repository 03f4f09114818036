"""New dataset versions: merged label sets, migrated schemas, withdrawn labelers or frames."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.audit import log as audit
from workbench.core.errors import ParameterError
from workbench.core.text import counted, short_repr
from workbench.labeling.agreement import (
    assess_agreement,
    consensus_labels,
    group_answers,
)
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, kind_of
from workbench.records.dataset import Dataset
from workbench.records.frames import ANY_CLASS, Frame, Label, LabelSchema, Light, Role, Weather
from workbench.records.model_types import Checkpoint, ExportBundle, Release
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelBatch, LabelSet, Withdrawal

__all__ = ["merge", "migrate", "preview_merge", "withdraw"]

_CONDITION_TYPES: dict[str, type[Light] | type[Weather]] = {"light": Light, "weather": Weather}
_TRAINING_ROLES = (Role.SEED, Role.TRAIN, Role.VAL)


@short_repr
@dataclass(frozen=True)
class WithdrawalResult:
    """Result of `withdraw`.

    Attributes:
        dataset: The new version.
        withdrawal: Record of what was withdrawn and why.
        models: Checkpoints, bundles and releases trained on what was withdrawn.
    """

    dataset: Ref
    withdrawal: Ref
    frames_removed: int
    labels_removed: int
    frames_back_in_pool: int
    models: tuple[Ref, ...]


def merge(
    store: Store,
    dataset: Dataset,
    labelset: Ref,
    *,
    agreement: Ref | None = None,
    adjudication: Ref | None = None,
) -> Dataset:
    """Save a new version of a dataset with the labels of a label set, see `merge_answers`.

    Its parents are the dataset, the label set, its agreement record and its adjudication.

    Args:
        agreement: Agreement of this label set; by default measured now if several labelers
            answered the same frame.
        adjudication: Label set of the batch that adjudicates this one.

    Raises:
        ParameterError: ``dataset`` is not a saved version or lacks labeled frames, or the
            adjudication belongs to another label set.
    """
    if dataset.ref is None:
        raise ParameterError("the dataset is not saved, so it cannot be a parent version")
    record = store.get(labelset, LabelSet)
    labels, answers = _read_label_set(store, labelset)
    gold: tuple[Digest, ...] = store.get(record.batch, LabelBatch).gold
    several = any(len(by_labeler) > 1 for by_labeler in group_answers((), answers).values())
    if agreement is None and (gold or several):
        agreement = assess_agreement(store, labelset)
    adjudicated = _adjudicated_labels(store, labelset, adjudication)
    result = merge_answers(dataset, labels, answers, adjudicated=adjudicated, gold=gold)
    sources = (labelset, agreement, adjudication)
    parents = (dataset.ref, *(ref for ref in sources if ref is not None))
    ref = datasets.save_dataset(store, result, made_by="collect", parents=parents)
    return replace(result, ref=ref)


def preview_merge(store: Store, dataset: Dataset, labelset: Ref) -> Dataset:
    """The dataset as `merge` would leave it, without saving anything.

    Raises:
        ParameterError: Labeled frames are missing in the dataset.
    """
    gold = store.get(store.get(labelset, LabelSet).batch, LabelBatch).gold
    return merge_answers(dataset, *_read_label_set(store, labelset), gold=gold)


def merge_answers(
    dataset: Dataset,
    labels: Iterable[Label],
    answers: Collection[AnswerRow],
    *,
    adjudicated: Mapping[Digest, list[Label]] | None = None,
    gold: Collection[Digest] = (),
) -> Dataset:
    """Replace the labels of answered frames by the labelers' answers.

    A labeled frame of role ``pool`` becomes ``train``, also when it has no objects; other roles
    stay. Frames that were only skipped and gold frames stay unchanged. Several answers to a frame
    are combined by `agreement._CONSENSUS_RULE`. Answers about the frame update its conditions or
    attributes.

    Args:
        adjudicated: Adjudicators' labels by frame; they replace the consensus.

    Raises:
        ParameterError: Labeled frames are missing in the dataset.
    """
    by_frame = group_answers(labels, (row for row in answers if row.frame not in gold))
    unknown = by_frame.keys() - {frame.id for frame in dataset.frames}
    if unknown:
        raise ParameterError(
            f"{len(unknown)} labeled frames are not in the dataset",
            where=dataset.ref or dataset.name,
            hint="Merge into the version that the batch was made from, or into a later one",
        )
    final = {frame: consensus_labels(frame, theirs) for frame, theirs in by_frame.items()}
    final.update({frame: some for frame, some in (adjudicated or {}).items() if frame in final})
    unchanged = [label for label in dataset.labels if label.frame not in final]
    choices = _majority_choices(answers, final)
    frames = tuple(
        _update_frame(frame, choices.get(frame.id, {})) if frame.id in final else frame
        for frame in dataset.frames
    )
    new = [label for several in final.values() for label in several]
    return replace(dataset, frames=frames, labels=(*unchanged, *new), ref=None)


def _read_label_set(store: Store, labelset: Ref) -> tuple[tuple[Label, ...], tuple[AnswerRow, ...]]:
    return (
        datasets.read_json_lines(store.payload(labelset, "labels.jsonl"), Label),
        datasets.read_json_lines(store.payload(labelset, "answers.jsonl"), AnswerRow),
    )


def _adjudicated_labels(
    store: Store, labelset: Ref, adjudication: Ref | None
) -> dict[Digest, list[Label]] | None:
    if adjudication is None:
        return None
    batch = store.get(store.get(adjudication, LabelSet).batch, LabelBatch)
    if batch.adjudicates != labelset:
        raise ParameterError(
            "the adjudication belongs to another label set",
            where=adjudication,
            hint=f"It adjudicates {batch.adjudicates}; the label set to merge is {labelset}",
        )
    by_frame = group_answers(*_read_label_set(store, adjudication))
    return {frame: consensus_labels(frame, theirs) for frame, theirs in by_frame.items()}


def _majority_choices(
    answers: Iterable[AnswerRow], frames: Collection[Digest]
) -> dict[Digest, dict[str, str]]:
    """Most frequent answer to each question about a frame; ties go to the first by name."""
    counts: dict[Digest, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for answer in answers:
        if answer.frame in frames and not answer.skipped:
            for question, choice in answer.choices.items():
                counts[answer.frame][question][choice] += 1
    return {
        frame: {
            question: min(choices, key=lambda choice: (-choices[choice], choice))
            for question, choices in by_question.items()
        }
        for frame, by_question in counts.items()
    }


def _update_frame(frame: Frame, choices: Mapping[str, str]) -> Frame:
    conditions: dict[str, Any] = {}
    attributes: dict[str, str] = {}
    for question, choice in choices.items():
        values = _CONDITION_TYPES.get(question)
        if values is not None and choice in set(values):
            conditions[question] = values(choice)
        elif question == "construction" and choice in ("yes", "no"):
            conditions[question] = choice == "yes"
        else:
            attributes[question] = choice
    update: dict[str, Any] = {}
    if conditions:
        update["conditions"] = frame.conditions.model_copy(update=conditions)
    if attributes:
        update["attributes"] = {**frame.attributes, **attributes}
    if frame.role is Role.POOL:
        update["role"] = Role.TRAIN
    return frame.model_copy(update=update) if update else frame


def migrate(store: Store, dataset_ref: Ref, schema: LabelSchema) -> tuple[Ref, dict[str, int]]:
    """Save a dataset under a newer version of its label schema.

    A new version may add classes, questions and shapes. For a removed class its ``mapping`` names
    the new class, ``ignore`` or ``drop``.

    Returns:
        The new dataset version, and the number of labels by change, such as ``car -> vehicle``.

    Raises:
        ParameterError: The schema is not a newer version, or labels have no target class.
    """
    dataset = datasets.load_dataset(store, dataset_ref)
    old = dataset.label_schema
    if old.name != schema.name or schema.version <= old.version:
        raise ParameterError(
            f"{schema.name} version {schema.version} is not newer than {old.name}"
            f" version {old.version}",
            hint="Keep the schema's name and increase its version",
        )
    counts = Counter(label.cls for label in dataset.labels if label.cls != ANY_CLASS)
    targets = {cls: schema.class_of(cls) for cls in counts}
    unmapped = sorted(cls for cls, target in targets.items() if target is None)
    if unmapped:
        classes = ", ".join(f"{cls} ({counted(counts[cls], 'label')})" for cls in unmapped)
        raise ParameterError(
            f"schema {schema.name} version {schema.version} has no target class for {classes}",
            where=dataset_ref,
            hint="Add each class to the schema's `mapping`: the new class, `ignore` or `drop`",
        )
    labels = []
    for label in dataset.labels:
        target = targets.get(label.cls, label.cls)
        if target == "ignore":
            labels.append(label.model_copy(update={"cls": ANY_CLASS, "ignore": True}))
        elif target != "drop":
            labels.append(label.model_copy(update={"cls": target}))
    result = replace(dataset, label_schema=schema, labels=tuple(labels), ref=None)
    ref = datasets.save_dataset(store, result, made_by="migrate", parents=(dataset_ref,))
    changes = {f"{cls} -> {targets[cls]}": n for cls, n in counts.items() if targets[cls] != cls}
    return ref, changes


def withdraw(
    store: Store,
    dataset_ref: Ref,
    *,
    annotators: Collection[str] = (),
    frames: Collection[Digest] = (),
    reason: str,
) -> WithdrawalResult:
    """Save a version of a dataset without some labelers' work or without some frames.

    Training frames whose labels are withdrawn go back to the pool to be labeled again; ``val``,
    ``safety`` and ``blind`` frames are removed, because incomplete labels would count correct
    predictions as false. Records are immutable: to erase images as well, delete the media files of
    the frames; every version with these frames then reports them as missing.

    Raises:
        ParameterError: The dataset contains nothing to withdraw, or the reason is empty.
    """
    if not reason.strip():
        raise ParameterError("the reason is empty", hint="For example: consent withdrawn")
    dataset = datasets.load_dataset(store, dataset_ref)
    withdrawn = frozenset(frames) & {frame.id for frame in dataset.frames}
    touched = _frames_answered_by(store, dataset_ref, frozenset(annotators)) | {
        label.frame for label in dataset.labels if label.annotator in annotators
    }
    touched = touched - withdrawn
    if not withdrawn and not touched:
        raise ParameterError(
            "the dataset contains none of these labelers and frames",
            where=dataset_ref,
            hint="`workbench lineage` lists its annotators and frames",
        )
    result = _without_withdrawn(dataset, withdrawn, touched, annotators)
    removed = len(dataset.labels) - len(result.labels)
    models = tuple(_affected_models(store, withdrawn, frozenset(annotators)))
    record = Withdrawal(
        dataset=dataset_ref,
        annotators=tuple(sorted(annotators)),
        frames=tuple(sorted(withdrawn)),
        reason=reason,
        labels_removed=removed,
    )
    withdrawal = store.put(record, {"models.json": json.dumps(models).encode()})
    ref = datasets.save_dataset(
        store, result, made_by="withdraw", parents=(dataset_ref, withdrawal)
    )
    audit.append(
        store.workspace,
        "withdrew",
        subjects=(withdrawal, dataset_ref, ref),
        reason=reason,
        annotators=list(record.annotators),
        frames=len(withdrawn),
    )
    pool = {frame.id for frame in result.frames if frame.role is Role.POOL}
    return WithdrawalResult(
        dataset=ref,
        withdrawal=withdrawal,
        frames_removed=len(dataset.frames) - len(result.frames),
        labels_removed=removed,
        frames_back_in_pool=len(touched & pool),
        models=models,
    )


def _without_withdrawn(
    dataset: Dataset,
    withdrawn: Collection[Digest],
    touched: Collection[Digest],
    annotators: Collection[str],
) -> Dataset:
    frames: list[Frame] = []
    for frame in dataset.frames:
        if frame.id in withdrawn:
            continue
        if frame.id not in touched:
            frames.append(frame)
        elif frame.role in (Role.TRAIN, Role.POOL, None):
            frames.append(frame.model_copy(update={"role": Role.POOL}))
    ids = {frame.id for frame in frames}
    labels = tuple(
        label
        for label in dataset.labels
        if label.frame in ids and label.frame not in touched and label.annotator not in annotators
    )
    drives = {frame.drive for frame in frames}
    return replace(
        dataset,
        frames=tuple(frames),
        labels=labels,
        drives=tuple(drive for drive in dataset.drives if drive.id in drives),
        ref=None,
    )


def _frames_answered_by(store: Store, dataset_ref: Ref, annotators: frozenset[str]) -> set[Digest]:
    """Frames answered by these labelers only, frames without objects included."""
    frames: set[Digest] = set()
    if not annotators:
        return frames
    for labelset in _ancestor_label_sets(store, dataset_ref):
        by_frame: dict[Digest, set[str]] = {}
        for row in datasets.read_json_lines(store.payload(labelset, "answers.jsonl"), AnswerRow):
            if not row.skipped:
                by_frame.setdefault(row.frame, set()).add(row.annotator)
        frames |= {frame for frame, people in by_frame.items() if people <= annotators}
    return frames


def _ancestor_label_sets(store: Store, dataset_ref: Ref) -> Iterator[Ref]:
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


def _affected_models(
    store: Store, frames: frozenset[Digest], annotators: frozenset[str]
) -> Iterator[Ref]:
    """Checkpoints trained on withdrawn frames or labels, then their bundles and releases."""
    datasets_affected: dict[Ref, bool] = {}
    affected: set[Ref] = set()
    for ref in store.refs(Checkpoint.KIND):
        record = store.get(ref, Checkpoint)
        if record.dataset not in datasets_affected:
            datasets_affected[record.dataset] = store.exists(record.dataset) and _trains_on(
                store, record.dataset, frames, annotators
            )
        # A checkpoint fine-tuned from an affected one is affected too.
        if datasets_affected[record.dataset] or record.parent in affected:
            affected.add(ref)
            yield ref
    for ref in store.refs(ExportBundle.KIND):
        if store.get(ref, ExportBundle).checkpoint in affected:
            affected.add(ref)
            yield ref
    for ref in store.refs(Release.KIND):
        if store.get(ref, Release).bundle in affected:
            yield ref


def _trains_on(
    store: Store, dataset_ref: Ref, frames: frozenset[Digest], annotators: frozenset[str]
) -> bool:
    """Whether training on a dataset uses these frames or these labelers' answers."""
    rows = datasets.read_json_lines(store.payload(dataset_ref, "frames.jsonl"), Frame)
    training = {frame.id for frame in rows if frame.role in _TRAINING_ROLES}
    if training & frames or training & _frames_answered_by(store, dataset_ref, annotators):
        return True
    labels = datasets.read_json_lines(store.payload(dataset_ref, "labels.jsonl"), Label)
    return any(label.annotator in annotators and label.frame in training for label in labels)
