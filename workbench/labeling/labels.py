"""Merge: a label set and the dataset it was asked of become a new dataset version."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from workbench.errors import ParameterError
from workbench.labeling.answers import AnswerRow
from workbench.labeling.assessment import assess
from workbench.labeling.consensus import agreed
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Label, Light, Role, Weather
from workbench.records.store import Store
from workbench.records.types import LabelBatch, LabelSet

_CONDITIONS: dict[str, type[Light] | type[Weather]] = {"light": Light, "weather": Weather}


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
    labels, answers = _read(store, labelset)
    gold: tuple[Digest, ...] = store.get(record.batch, LabelBatch).gold
    if agreement is None and (gold or _several(answers)):
        agreement = assess(store, labelset)
    settled = _settled(store, labelset, adjudication)
    result = merged(dataset, labels, answers, settled=settled, gold=gold)
    result = replace(result, simulated=dataset.simulated or record.simulated)
    sources = (labelset, agreement, adjudication)
    parents = (dataset.ref, *(ref for ref in sources if ref is not None))
    ref = datasets.save(store, result, made_by="collect", parents=parents)
    return replace(result, ref=ref)


def preview(dataset: Dataset, store: Store, labelset: Ref) -> Dataset:
    """``dataset`` as a label set would leave it; nothing is kept. See `merged`."""
    gold = store.get(store.get(labelset, LabelSet).batch, LabelBatch).gold
    return merged(dataset, *_read(store, labelset), gold=gold)


def merged(
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
    final = {frame: agreed(frame, by_person) for frame, by_person in people.items()}
    final.update({frame: said for frame, said in (settled or {}).items() if frame in final})
    kept = [label for label in dataset.labels if label.frame not in final]
    said = _choices(answers, final)
    frames = tuple(
        _answered(frame, said.get(frame.id, {})) if frame.id in final else frame
        for frame in dataset.frames
    )
    added = [label for theirs in final.values() for label in theirs]
    return replace(dataset, frames=frames, labels=(*kept, *added), ref=None)


def _read(store: Store, labelset: Ref) -> tuple[tuple[Label, ...], tuple[AnswerRow, ...]]:
    return (
        datasets.read_lines(store.payload(labelset, "labels.jsonl"), Label),
        datasets.read_lines(store.payload(labelset, "answers.jsonl"), AnswerRow),
    )


def _several(answers: Iterable[AnswerRow]) -> bool:
    counts = Counter(answer.frame for answer in answers if not answer.skipped)
    return any(count > 1 for count in counts.values())


def _settled(
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
    labels, answers = _read(store, adjudication)
    people: dict[Digest, dict[str, list[Label]]] = defaultdict(dict)
    for answer in answers:
        if not answer.skipped:
            people[answer.frame][answer.annotator] = []
    for label in labels:
        people[label.frame][label.annotator].append(label)
    return {frame: agreed(frame, by_person) for frame, by_person in people.items()}


def _choices(
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


def _answered(frame: Frame, said: Mapping[str, str]) -> Frame:
    conditions = {
        name: value
        for name, value in said.items()
        if name in _CONDITIONS and value in set(_CONDITIONS[name])
    }
    if said.get("construction") in ("yes", "no"):
        conditions["construction"] = said["construction"]
    rest = {name: value for name, value in said.items() if name not in conditions}
    update: dict[str, Any] = {}
    if conditions:
        typed: dict[str, Any] = {
            name: value == "yes" if name == "construction" else _CONDITIONS[name](value)
            for name, value in conditions.items()
        }
        update["conditions"] = frame.conditions.model_copy(update=typed)
    if rest:
        update["attributes"] = {**frame.attributes, **rest}
    if frame.role is Role.POOL:
        update["role"] = Role.TRAIN
    return frame.model_copy(update=update) if update else frame
