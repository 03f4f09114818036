"""New dataset versions: merged labels and withdrawn labelers or frames."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.core.errors import ParameterError
from workbench.labeling.agreement import assess_agreement, consensus_labels
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, kind_of
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Label, Light, Role, Weather
from workbench.records.model_types import Checkpoint, ExportBundle, Release
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelBatch, LabelSet, Withdrawal

_CONDITION_TYPES: dict[str, type[Light] | type[Weather]] = {"light": Light, "weather": Weather}


def merge(
    store: Store,
    dataset: Dataset,
    labelset: Ref,
    *,
    agreement: Ref | None = None,
    adjudication: Ref | None = None,
) -> Dataset:
    """Keep a new version of ``dataset`` in which labelers' answers count, and return it.

    Its parents are the version it came from, the label set, how far its labelers agreed, and the
    label set in which their disagreements were settled. See `merged` for the rules.

    Args:
        agreement: Of this label set; measured now where it has frames with several answers.
        adjudication: The label set of the batch that adjudicates this one.

    Raises:
        ParameterError: ``dataset`` is no kept version, lacks frames that were labeled, or the
            adjudication is of another label set.
    """
    if dataset.ref is None:
        raise ParameterError("only a kept dataset version can be the parent of another")
    record = store.get(labelset, LabelSet)
    labels, answers = _read_label_set(store, labelset)
    gold: tuple[Digest, ...] = store.get(record.batch, LabelBatch).gold
    if agreement is None and (gold or _has_several_answers(answers)):
        agreement = assess_agreement(store, labelset)
    settled = _adjudicated_labels(store, labelset, adjudication)
    result = merge_answers(dataset, labels, answers, settled=settled, gold=gold)
    result = replace(result, simulated=dataset.simulated or record.simulated)
    sources = (labelset, agreement, adjudication)
    parents = (dataset.ref, *(ref for ref in sources if ref is not None))
    ref = datasets.save_dataset(store, result, made_by="collect", parents=parents)
    return replace(result, ref=ref)


def preview_merge(dataset: Dataset, store: Store, labelset: Ref) -> Dataset:
    """``dataset`` as a label set would leave it; nothing is kept. See `merged`."""
    gold = store.get(store.get(labelset, LabelSet).batch, LabelBatch).gold
    return merge_answers(dataset, *_read_label_set(store, labelset), gold=gold)


def merge_answers(
    dataset: Dataset,
    labels: tuple[Label, ...],
    answers: tuple[AnswerRow, ...],
    *,
    settled: Mapping[Digest, list[Label]] | None = None,
    gold: Collection[Digest] = (),
) -> Dataset:
    """``dataset`` with the answered frames' labels replaced by what labelers said.

    A frame of role ``pool`` that somebody labeled becomes ``train``, also when the answer is that
    there is nothing to box; other roles stay. A frame that was only skipped stays as it was, and
    so does a gold frame, whose labels are the ones trusted. Several answers to one frame become
    one as `consensus.RULE` says. Answers about the frame go to its conditions or attributes.

    Args:
        settled: What adjudicators said, by frame.
    """
    people: dict[Digest, dict[str, list[Label]]] = defaultdict(dict)
    for answer in answers:
        if not answer.skipped and answer.frame not in gold:
            people[answer.frame][answer.annotator] = []
    strangers = people.keys() - {frame.id for frame in dataset.frames}
    if strangers:
        raise ParameterError(
            f"{len(strangers)} labeled frames are not in the dataset",
            where=dataset.ref or dataset.name,
            hint="Merge into the version that the batch was made from, or one that came from it",
        )
    for label in labels:
        if label.annotator in people.get(label.frame, ()):
            people[label.frame][label.annotator].append(label)
    final = {frame: consensus_labels(frame, by_person) for frame, by_person in people.items()}
    final.update({frame: said for frame, said in (settled or {}).items() if frame in final})
    kept = [label for label in dataset.labels if label.frame not in final]
    said = _majority_choices(answers, final)
    frames = tuple(
        _update_frame(frame, said.get(frame.id, {})) if frame.id in final else frame
        for frame in dataset.frames
    )
    added = [label for theirs in final.values() for label in theirs]
    return replace(dataset, frames=frames, labels=(*kept, *added), ref=None)


def _read_label_set(store: Store, labelset: Ref) -> tuple[tuple[Label, ...], tuple[AnswerRow, ...]]:
    return (
        datasets.read_json_lines(store.payload(labelset, "labels.jsonl"), Label),
        datasets.read_json_lines(store.payload(labelset, "answers.jsonl"), AnswerRow),
    )


def _has_several_answers(answers: Iterable[AnswerRow]) -> bool:
    counts = Counter(answer.frame for answer in answers if not answer.skipped)
    return any(count > 1 for count in counts.values())


def _adjudicated_labels(
    store: Store, labelset: Ref, adjudication: Ref | None
) -> dict[Digest, list[Label]] | None:
    if adjudication is None:
        return None
    batch = store.get(store.get(adjudication, LabelSet).batch, LabelBatch)
    if batch.adjudicates != labelset:
        raise ParameterError(
            "this label set does not settle the disagreements of the other",
            where=adjudication,
            hint=f"It adjudicates {batch.adjudicates}, and {labelset} was to be merged",
        )
    labels, answers = _read_label_set(store, adjudication)
    people: dict[Digest, dict[str, list[Label]]] = defaultdict(dict)
    for answer in answers:
        if not answer.skipped:
            people[answer.frame][answer.annotator] = []
    for label in labels:
        people[label.frame][label.annotator].append(label)
    return {frame: consensus_labels(frame, by_person) for frame, by_person in people.items()}


def _majority_choices(
    answers: Iterable[AnswerRow], frames: Collection[Digest]
) -> dict[Digest, dict[str, str]]:
    """What most said of each frame; of equally many, the first by name."""
    counts: dict[Digest, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for answer in answers:
        if answer.frame in frames and not answer.skipped:
            for name, said in answer.choices.items():
                counts[answer.frame][name][said] += 1
    return {
        frame: {
            name: min(said, key=lambda one: (-said[one], one)) for name, said in by_name.items()
        }
        for frame, by_name in counts.items()
    }


def _update_frame(frame: Frame, said: Mapping[str, str]) -> Frame:
    conditions = {
        name: value
        for name, value in said.items()
        if name in _CONDITION_TYPES and value in set(_CONDITION_TYPES[name])
    }
    if said.get("construction") in ("yes", "no"):
        conditions["construction"] = said["construction"]
    rest = {name: value for name, value in said.items() if name not in conditions}
    update: dict[str, Any] = {}
    if conditions:
        typed: dict[str, Any] = {
            name: value == "yes" if name == "construction" else _CONDITION_TYPES[name](value)
            for name, value in conditions.items()
        }
        update["conditions"] = frame.conditions.model_copy(update=typed)
    if rest:
        update["attributes"] = {**frame.attributes, **rest}
    if frame.role is Role.POOL:
        update["role"] = Role.TRAIN
    return frame.model_copy(update=update) if update else frame


# ---- Labelers or frames that may no longer be used: a new dataset version, and who learned from them.
#
# Nothing is erased: records are immutable. Whoever has to erase images as well deletes the media
# files of the frames named; every version that holds them then says that they are missing.


_TRAINING_ROLES = (Role.SEED, Role.TRAIN, Role.VAL)


@dataclass(frozen=True)
class WithdrawalResult:
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
) -> WithdrawalResult:
    """Keep a version of a dataset without some labelers' work or without some frames.

    A training frame that loses its labeler goes back to the pool, to be labeled again: what is left
    of its labels is not all that there is to see. A frame that judges models (``val``, ``safety``,
    ``blind``) is left out instead, because half-labeled it would count what is there as false.

    Raises:
        ParameterError: There is nothing of theirs in the dataset, or no reason is given.
    """
    if not reason.strip():
        raise ParameterError("a withdrawal needs a reason", hint="Such as: consent withdrawn")
    dataset = datasets.load_dataset(store, dataset_ref)
    gone = frozenset(frames) & {frame.id for frame in dataset.frames}
    touched = _frames_answered_by(store, dataset_ref, frozenset(annotators)) | {
        label.frame for label in dataset.labels if label.annotator in annotators
    }
    touched = touched - gone
    if not gone and not touched:
        raise ParameterError(
            "nothing of what is withdrawn is in this dataset",
            where=dataset_ref,
            hint="`workbench lineage` lists its annotators and frames",
        )
    result = _without_withdrawn(dataset, gone, touched, annotators)
    removed = len(dataset.labels) - len(result.labels)
    models = tuple(_affected_models(store, gone, frozenset(annotators)))
    record = Withdrawal(
        dataset=dataset_ref,
        annotators=tuple(sorted(annotators)),
        frames=tuple(sorted(gone)),
        reason=reason,
        labels_removed=removed,
    )
    withdrawal = store.put(record, {"models.json": json.dumps(models).encode()})
    ref = datasets.save_dataset(
        store, result, made_by="withdraw", parents=(dataset_ref, withdrawal)
    )
    left = {frame.id: frame for frame in result.frames}
    back = sum(frame in left and left[frame].role is Role.POOL for frame in touched)
    lost = len(dataset.frames) - len(result.frames)
    return WithdrawalResult(ref, withdrawal, lost, removed, back, models)


def _without_withdrawn(
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


def _frames_answered_by(store: Store, dataset_ref: Ref, annotators: frozenset[str]) -> set[Digest]:
    """Frames that these labelers' answers decided, also where the answer was that nothing is there.

    Only label sets that a version came from count.
    """
    found: set[Digest] = set()
    if not annotators:
        return found
    for labelset in _ancestor_label_sets(store, dataset_ref):
        by_frame: dict[Digest, set[str]] = {}
        for row in datasets.read_json_lines(store.payload(labelset, "answers.jsonl"), AnswerRow):
            if not row.skipped:
                by_frame.setdefault(row.frame, set()).add(row.annotator)
        found |= {frame for frame, people in by_frame.items() if people <= annotators}
    return found


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
    """Checkpoints trained on withdrawn frames or labels, then bundles and releases made of them."""
    tainted: dict[Ref, bool] = {}
    found: set[Ref] = set()
    for ref in store.refs(Checkpoint.KIND):
        record = store.get(ref, Checkpoint)
        if record.dataset not in tainted:
            tainted[record.dataset] = store.exists(record.dataset) and _trained_on_withdrawn(
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


def _trained_on_withdrawn(
    store: Store, dataset_ref: Ref, frames: frozenset[Digest], annotators: frozenset[str]
) -> bool:
    rows = datasets.read_json_lines(store.payload(dataset_ref, "frames.jsonl"), Frame)
    learned = {frame.id for frame in rows if frame.role in _TRAINING_ROLES}
    if learned & frames or learned & _frames_answered_by(store, dataset_ref, annotators):
        return True
    labels = datasets.read_json_lines(store.payload(dataset_ref, "labels.jsonl"), Label)
    return any(label.annotator in annotators and label.frame in learned for label in labels)
