"""Disagreements of a label set become a batch of their own, blind to who drew what."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.errors import ParameterError
from workbench.labeling.answers import region_id
from workbench.labeling.assessment import disagreements, read_answers
from workbench.labeling.consensus import Thing, things
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.frames import Label
from workbench.records.store import Store
from workbench.records.types import Choice, LabelBatch, LabelSet, Prediction, Selection


def make_adjudication(store: Store, labelset_ref: Ref) -> Ref | None:
    """The batch that settles a label set's disagreements; None when there are none.

    An adjudicator starts from everything that anyone drew: once where labelers agree, every
    drawing where they do not. Nothing tells who drew what; what is said of a frame counts only
    how many. An adjudicator's answer is final, see `consensus.RULE`.

    Raises:
        ParameterError: The label set settles disagreements itself.
    """
    record = store.get(labelset_ref, LabelSet)
    batch = store.get(record.batch, LabelBatch)
    if batch.adjudicates:
        raise ParameterError(
            "these labels settle disagreements already", where=labelset_ref, hint="Merge them"
        )
    answers = read_answers(store, labelset_ref)
    gold = set(batch.gold)
    disputed = [one for one in disagreements(answers) if one.frame not in gold]
    if not disputed:
        return None
    chosen = tuple(
        Choice(frame=one.frame, rank=rank, score=float(len(one.reasons)), reasons=one.reasons)
        for rank, one in enumerate(disputed, start=1)
    )
    selection = Selection(
        dataset=batch.dataset,
        budget=len(chosen),
        seed=0,
        method="adjudication",
        parameters={"labels": labelset_ref},
        chosen=chosen,
    )
    candidates = [
        candidate for one in disputed for candidate in _candidates(one.frame, answers[one.frame])
    ]
    made = LabelBatch(
        dataset=batch.dataset,
        selection=store.put(selection),
        model=None,
        label_schema=batch.label_schema,
        frames=tuple(choice.frame for choice in chosen),
        adjudicates=labelset_ref,
    )
    return store.put(made, {"predictions.jsonl": datasets.lines(candidates)})


def labeled_by(store: Store, batch: LabelBatch) -> Mapping[Digest, frozenset[str]]:
    """Who may not settle a frame of an adjudication: those whose boxes are in dispute."""
    if batch.adjudicates is None:
        return {}
    answers = read_answers(store, batch.adjudicates)
    return {frame: frozenset(people) for frame, people in answers.items()}


def _candidates(frame: Digest, by_person: Mapping[str, list[Label]]) -> list[Prediction]:
    found: dict[str, Prediction] = {}
    for thing in things(by_person):
        share = len(thing.drawn) / len(by_person)
        for label in _shown(thing, len(by_person)):
            # Name and order follow from the drawing alone, and the score from how many drew it.
            one = Prediction(
                frame=frame,
                cls=label.cls,
                box=label.box,
                score=share,
                turned=label.turned,
                polygon=label.polygon,
            )
            found[region_id(one)] = one
    return [found[name] for name in sorted(found)]


def _shown(thing: Thing, labelers: int) -> tuple[Label, ...]:
    agreed = len(thing.drawn) == labelers and len({one.cls for one in thing.drawn}) == 1
    return (thing.best,) if agreed else thing.drawn
