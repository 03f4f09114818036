"""Frames to label again: suspected label errors, disagreements to adjudicate, labeling effort."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import ParameterError
from workbench.detection import label_errors
from workbench.detection.label_errors import LabelError
from workbench.labeling.agreement import (
    Disagreement,
    ObjectGroup,
    find_disagreements,
    group_objects,
    load_answers,
)
from workbench.labeling.answers import AnswerRow, is_replay, region_id
from workbench.records import dataset
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Label, Origin
from workbench.records.store import Store
from workbench.records.types import (
    Agreement,
    LabelBatch,
    LabelSet,
    Prediction,
    SelectedFrame,
    Selection,
)

REVIEW_METHOD = "label-quality"
"""Method of a selection whose frames are labeled already and are to be looked at again."""

_POOR_MISSED_RATE = 0.2
_DISPUTED_WEIGHT, _POOR_WEIGHT = 0.75, 0.5
"""Weights of what says less about a frame than a trusted model does."""


@dataclass(frozen=True)
class Suspect:
    """One thing about a frame that a person should look at again; ``weight`` orders them."""

    frame: Digest
    kind: str
    weight: float
    why: str


def suspects_from_model(dataset: Dataset, predictions: Iterable[Prediction]) -> list[Suspect]:
    """Where a model contradicts what people said, see `label_errors.find`; likeliest first."""
    return suspects_from_errors(label_errors.find_label_errors(dataset, predictions))


def suspects_from_errors(errors: Iterable[LabelError]) -> list[Suspect]:
    """The same for errors that were found elsewhere."""
    return [Suspect(one.frame, one.kind, one.weight, one.why) for one in errors]


def suspects_from_agreement(store: Store, agreement: Ref) -> list[Suspect]:
    """Frames that labelers disagree about, and those of labelers who do badly on gold frames."""
    record = store.get(agreement, Agreement)
    rows = datasets.read_json_lines(store.payload(agreement, "disagreements.jsonl"), Disagreement)
    found = [
        Suspect(row.frame, "disputed", _DISPUTED_WEIGHT, f"labelers disagree: {reason}")
        for row in rows
        for reason in row.reasons
    ]
    poor = {
        rate.name
        for rate in record.rates
        if rate.against == "gold"
        and rate.subject == "labeler"
        and (rate.missed or 0) > _POOR_MISSED_RATE
    }
    answers = datasets.read_json_lines(store.payload(record.labels, "answers.jsonl"), AnswerRow)
    why = f"its labeler misses over {_POOR_MISSED_RATE:.0%} of the boxes in gold frames"
    found += [
        Suspect(row.frame, "poor", _POOR_WEIGHT, why) for row in answers if row.annotator in poor
    ]
    return found


def select_for_review(
    store: Store, dataset_ref: Ref, found: Sequence[Suspect], budget: int, model: Ref | None = None
) -> Ref:
    """The frames with most to look at again, as a selection that can be sent.

    Raises:
        ParameterError: Nothing looks wrong, or the budget is no number of frames.
    """
    if budget < 1:
        raise ParameterError(f"a review needs a budget of at least one frame, got {budget}")
    if not found:
        raise ParameterError(
            "nothing looks wrong here",
            where=dataset_ref,
            hint="Use a better model, or measure labelers with gold frames",
        )
    by_frame: dict[Digest, list[Suspect]] = defaultdict(list)
    for one in found:
        by_frame[one.frame].append(one)
    scores = {frame: sum(one.weight for one in theirs) for frame, theirs in by_frame.items()}
    ranked = sorted(scores, key=lambda frame: (-scores[frame], frame))[:budget]
    chosen = tuple(
        SelectedFrame(
            frame=frame,
            rank=rank,
            score=round(scores[frame], 6),
            reasons=tuple(dict.fromkeys(one.why for one in by_frame[frame]))[:5],
        )
        for rank, frame in enumerate(ranked, start=1)
    )
    return store.put(
        Selection(
            dataset=dataset_ref,
            model=model,
            budget=budget,
            seed=0,
            method=REVIEW_METHOD,
            parameters={"suspects": len(found), "frames": len(by_frame)},
            chosen=chosen,
        )
    )


@dataclass(frozen=True)
class LabelingEffort:
    """What labeling cost people, as far as the server measured it; replays cost nobody anything.

    ``seconds_per_frame`` and ``seconds_per_box`` are of a least-squares fit, so that a frame with
    n boxes takes their sum; None where too little was measured. ``changed_per_minute`` is the
    yield: boxes drawn, mended or removed in a minute of a labeler's time.
    """

    frames: int
    boxes: int
    minutes: float
    seconds_per_frame: float | None
    seconds_per_box: float | None
    changed_per_minute: float | None


def labeling_effort(store: Store, labelsets: Iterable[Ref]) -> LabelingEffort:
    """What people's answers in these label sets took."""
    rows: list[AnswerRow] = []
    changed = 0
    for ref in labelsets:
        store.get(ref, LabelSet)
        answers = datasets.read_json_lines(store.payload(ref, "answers.jsonl"), AnswerRow)
        rows += [row for row in answers if row.minutes is not None and not is_replay(row.annotator)]
        labels = datasets.read_json_lines(store.payload(ref, "labels.jsonl"), Label)
        changed += sum(one.origin in (Origin.HUMAN, Origin.HUMAN_EDITED) for one in labels)
    changed += sum(row.removed for row in rows)
    minutes = sum(row.minutes or 0 for row in rows)
    counts = np.array([[1.0, row.boxes] for row in rows]).reshape(-1, 2)
    seconds = np.array([(row.minutes or 0) * 60 for row in rows])
    fitted = np.linalg.matrix_rank(counts) == 2 if len(rows) else False
    each = np.clip(np.linalg.lstsq(counts, seconds, rcond=None)[0], 0, None) if fitted else None
    return LabelingEffort(
        frames=len(rows),
        boxes=sum(row.boxes for row in rows),
        minutes=round(minutes, 3),
        seconds_per_frame=None if each is None else round(float(each[0]), 3),
        seconds_per_box=None if each is None else round(float(each[1]), 3),
        changed_per_minute=round(changed / minutes, 3) if minutes else None,
    )


def minutes_by_frame(store: Store, labelset: Ref) -> dict[Digest, float | None]:
    """Every frame that somebody answered, and what that took all who did, in minutes.

    Skips took time, too. None where nobody's time was measured, as in a replay.
    """
    answers = datasets.read_json_lines(store.payload(labelset, "answers.jsonl"), AnswerRow)
    taken: dict[Digest, float | None] = {}
    for row in answers:
        known = None if is_replay(row.annotator) else row.minutes
        before = taken.get(row.frame, 0.0)
        taken[row.frame] = None if known is None or before is None else before + known
    return taken


# ---- Disagreements of a label set become a batch of their own, blind to who drew what.


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
    answers = load_answers(store, labelset_ref)
    gold = set(batch.gold)
    disputed = [one for one in find_disagreements(answers) if one.frame not in gold]
    if not disputed:
        return None
    chosen = tuple(
        SelectedFrame(
            frame=one.frame, rank=rank, score=float(len(one.reasons)), reasons=one.reasons
        )
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
        candidate
        for one in disputed
        for candidate in _candidate_predictions(one.frame, answers[one.frame])
    ]
    made = LabelBatch(
        dataset=batch.dataset,
        selection=store.put(selection),
        model=None,
        label_schema=batch.label_schema,
        frames=tuple(choice.frame for choice in chosen),
        adjudicates=labelset_ref,
    )
    return store.put(made, {"predictions.jsonl": dataset.to_json_lines(candidates)})


def disputed_labelers(store: Store, batch: LabelBatch) -> Mapping[Digest, frozenset[str]]:
    """Who may not settle a frame of an adjudication: those whose boxes are in dispute."""
    if batch.adjudicates is None:
        return {}
    answers = load_answers(store, batch.adjudicates)
    return {frame: frozenset(people) for frame, people in answers.items()}


def _candidate_predictions(frame: Digest, by_person: Mapping[str, list[Label]]) -> list[Prediction]:
    found: dict[str, Prediction] = {}
    for thing in group_objects(by_person):
        share = len(thing.drawn) / len(by_person)
        for label in _candidate_labels(thing, len(by_person)):
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


def _candidate_labels(thing: ObjectGroup, labelers: int) -> tuple[Label, ...]:
    agreed = len(thing.drawn) == labelers and len({one.cls for one in thing.drawn}) == 1
    return (thing.best,) if agreed else thing.drawn
