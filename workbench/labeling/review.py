"""Frames to label again: suspected label errors, adjudication of disagreements, labeling effort."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.core.errors import ParameterError, RecordError
from workbench.core.parsing import describe_unreadable
from workbench.data.resampling import draw_resamples, expanded_tail, resampling_units
from workbench.detection.label_errors import LabelError, find_label_errors
from workbench.labeling.agreement import (
    Disagreement,
    find_disagreements,
    group_objects,
    load_answers,
)
from workbench.labeling.answers import AnswerRow, is_replay, region_id
from workbench.labeling.first_boxes import starts_empty
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

__all__ = [
    "labeling_effort",
    "make_adjudication",
    "minutes_by_frame",
    "select_for_review",
    "suspects_from_agreement",
    "suspects_from_errors",
    "suspects_from_model",
]

REVIEW_METHOD = "label-quality"
"""Method of a selection of labeled frames for review."""

_MAX_MISSED_RATE = 0.2
_RESAMPLES, _CONFIDENCE = 2000, 0.95

# A suspect found by a model has a weight between 0 and 1; other evidence says less about a frame.
_DISPUTED_WEIGHT, _POOR_LABELER_WEIGHT = 0.75, 0.5


@dataclass(frozen=True)
class Suspect:
    """A reason to review a frame.

    Attributes:
        kind: Kind of label error, or ``disputed`` or ``poor`` (labeler).
        weight: Between 0 and 1; frames are ranked by the sum of their weights.
        why: The reason for the labeler.
    """

    frame: Digest
    kind: str
    weight: float
    why: str


@dataclass(frozen=True)
class FirstBoxesEffect:
    """Time that labelers take with a model's boxes, beside frames drawn to start empty.

    Attributes:
        with_boxes, without_boxes: Number of answers.
        seconds_with, seconds_without: Mean time of an answer.
        ratio: Of the two times; below 1, boxes save time.
        interval: 95 % interval of the ratio, by resampling ``units``; None with fewer than two.
        units: What was resampled, such as ``12 drives``.
    """

    with_boxes: int
    without_boxes: int
    seconds_with: float
    seconds_without: float
    ratio: float
    interval: tuple[float, float] | None
    units: str

    @property
    def verdict(self) -> str:
        """What the interval says: ``saves time``, ``costs time`` or ``undecided``."""
        if self.interval is None or self.interval[0] <= 1 <= self.interval[1]:
            return "undecided"
        return "saves time" if self.ratio < 1 else "costs time"


@dataclass(frozen=True)
class LabelingEffort:
    """Measured working time of people; replays do not count.

    Attributes:
        seconds_per_frame, seconds_per_box: Least-squares fit: a frame with n boxes takes
            ``seconds_per_frame + n * seconds_per_box``. None with too few measurements.
        changed_per_minute: Boxes drawn, edited or removed per minute of working time.
        first_boxes: Whether boxes to start from save time; None where no frames started empty by
            chance.
        damaged: Label sets that could not be read and are left out, with the problem.
    """

    frames: int
    boxes: int
    minutes: float
    seconds_per_frame: float | None
    seconds_per_box: float | None
    changed_per_minute: float | None
    first_boxes: FirstBoxesEffect | None = None
    damaged: dict[Ref, str] = field(default_factory=dict)


def suspects_from_model(dataset: Dataset, predictions: Iterable[Prediction]) -> list[Suspect]:
    """Frames where a model contradicts the labels, see `label_errors.find_label_errors`.

    Args:
        predictions: Of the dataset's labeled frames.
    """
    return suspects_from_errors(find_label_errors(dataset, predictions))


def suspects_from_errors(errors: Iterable[LabelError]) -> list[Suspect]:
    """Suspects for label errors that were already found."""
    return [Suspect(one.frame, one.kind, one.weight, one.why) for one in errors]


def suspects_from_agreement(store: Store, agreement: Ref) -> list[Suspect]:
    """Disputed frames, and frames of labelers who miss more than 20 % of the boxes of gold frames.

    Args:
        agreement: Agreement record, see `agreement.assess_agreement`.
    """
    record = store.get(agreement, Agreement)
    rows = datasets.read_json_lines(store.payload(agreement, "disagreements.jsonl"), Disagreement)
    suspects = [
        Suspect(row.frame, "disputed", _DISPUTED_WEIGHT, f"labelers disagree: {reason}")
        for row in rows
        for reason in row.reasons
    ]
    poor_labelers = {
        rate.name
        for rate in record.rates
        if rate.against == "gold"
        and rate.subject == "labeler"
        and (rate.missed or 0) > _MAX_MISSED_RATE
    }
    why = f"its labeler misses over {_MAX_MISSED_RATE:.0%} of the boxes in gold frames"
    answers = datasets.read_json_lines(store.payload(record.labels, "answers.jsonl"), AnswerRow)
    suspects += [
        Suspect(row.frame, "poor", _POOR_LABELER_WEIGHT, why)
        for row in answers
        if row.annotator in poor_labelers
    ]
    return suspects


def select_for_review(
    store: Store,
    dataset_ref: Ref,
    suspects: Sequence[Suspect],
    budget: int,
    model: Ref | None = None,
) -> Ref:
    """Save a selection of the most suspicious frames, to be sent to labelers.

    Args:
        budget: Number of frames.
        model: Checkpoint that found the suspects.

    Raises:
        ParameterError: There are no suspects, or the budget is less than 1.
    """
    if budget < 1:
        raise ParameterError(f"budget must be >= 1 frame, got {budget}")
    if not suspects:
        raise ParameterError(
            "no suspicious labels found",
            where=dataset_ref,
            hint="Use a better model, or measure labelers with gold frames",
        )
    by_frame: dict[Digest, list[Suspect]] = defaultdict(list)
    for suspect in suspects:
        by_frame[suspect.frame].append(suspect)
    scores = {frame: sum(one.weight for one in several) for frame, several in by_frame.items()}
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
            parameters={"suspects": len(suspects), "frames": len(by_frame)},
            chosen=chosen,
        )
    )


def make_adjudication(store: Store, labelset_ref: Ref) -> Ref | None:
    """Save a batch of the disputed frames of a label set; None if there are none.

    The adjudicator starts from all boxes: one per object where the labelers agree, every labeler's
    box where they do not. Nothing shows who drew what. The adjudicator's answer is final.

    Raises:
        ParameterError: The label set is itself an adjudication.
    """
    batch = store.get(store.get(labelset_ref, LabelSet).batch, LabelBatch)
    if batch.adjudicates:
        raise ParameterError(
            "this label set is already an adjudication", where=labelset_ref, hint="Merge it"
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
        candidate for one in disputed for candidate in _candidates(one.frame, answers[one.frame])
    ]
    adjudication = LabelBatch(
        dataset=batch.dataset,
        selection=store.put(selection),
        model=None,
        label_schema=batch.label_schema,
        frames=tuple(choice.frame for choice in chosen),
        adjudicates=labelset_ref,
    )
    return store.put(adjudication, {"predictions.jsonl": datasets.to_json_lines(candidates)})


def disputed_labelers(store: Store, batch: LabelBatch) -> Mapping[Digest, frozenset[str]]:
    """Labelers who may not adjudicate a frame, because their own boxes are in dispute."""
    if batch.adjudicates is None:
        return {}
    answers = load_answers(store, batch.adjudicates)
    return {frame: frozenset(by_labeler) for frame, by_labeler in answers.items()}


def _candidates(frame: Digest, by_labeler: Mapping[str, list[Label]]) -> list[Prediction]:
    candidates: dict[str, Prediction] = {}
    for group in group_objects(by_labeler):
        share = len(group.drawn) / len(by_labeler)
        agreed = share == 1 and len({label.cls for label in group.drawn}) == 1
        for label in (group.best,) if agreed else group.drawn:
            # The score is the share of labelers: order and ids must not reveal who drew what.
            candidate = Prediction(
                frame=frame,
                cls=label.cls,
                box=label.box,
                score=share,
                turned=label.turned,
                polygon=label.polygon,
            )
            candidates[region_id(candidate)] = candidate
    return [candidates[name] for name in sorted(candidates)]


def labeling_effort(store: Store, labelsets: Iterable[Ref]) -> LabelingEffort:
    """Working time of people in these label sets; those that are damaged are left out and named.

    Args:
        labelsets: Label sets of any batches and datasets.
    """
    rows: list[AnswerRow] = []
    readable: list[Ref] = []
    damaged: dict[Ref, str] = {}
    changed = 0
    for ref in labelsets:
        try:
            answers = datasets.read_json_lines(store.payload(ref, "answers.jsonl"), AnswerRow)
            labels = datasets.read_json_lines(store.payload(ref, "labels.jsonl"), Label)
            store.get(store.get(ref, LabelSet).batch, LabelBatch)
        except (RecordError, ValueError) as error:
            damaged[ref] = getattr(error, "what", None) or describe_unreadable(error)
            continue
        readable.append(ref)
        timed = [row for row in answers if row.minutes and not is_replay(row.annotator)]
        rows += timed
        # Boxes of answers without a time would be counted against the minutes of others.
        counting = {(row.frame, row.annotator) for row in timed}
        changed += sum(
            one.origin in (Origin.HUMAN, Origin.HUMAN_EDITED)
            and (one.frame, one.annotator) in counting
            for one in labels
        )
    changed += sum(row.removed for row in rows)
    minutes = sum(row.minutes or 0 for row in rows)
    counts = np.array([[1.0, row.boxes] for row in rows]).reshape(-1, 2)
    seconds = np.array([(row.minutes or 0) * 60 for row in rows])
    per_frame = per_box = None
    if len(rows) and np.linalg.matrix_rank(counts) == 2:
        solution = np.linalg.lstsq(counts, seconds, rcond=None)[0].clip(min=0)
        per_frame, per_box = (round(float(value), 3) for value in solution)
    return LabelingEffort(
        frames=len(rows),
        boxes=sum(row.boxes for row in rows),
        minutes=round(minutes, 3),
        seconds_per_frame=per_frame,
        seconds_per_box=per_box,
        changed_per_minute=round(changed / minutes, 3) if minutes else None,
        first_boxes=_first_boxes_effect(store, readable),
        damaged=damaged,
    )


def _first_boxes_effect(store: Store, labelsets: Iterable[Ref]) -> FirstBoxesEffect | None:
    """Compare all frames that were not held out with those that were, boxes or not.

    Where a model finds nothing a frame has no boxes either, and little to draw: only the draw by
    digest makes two groups that are alike.
    """
    frames, seconds, empty = [], [], []
    for ref in labelsets:
        batch_ref = store.get(ref, LabelSet).batch
        batch = store.get(batch_ref, LabelBatch)
        try:
            path = store.payload(batch_ref, "predictions.jsonl")
            sent = {row.frame for row in datasets.read_json_lines(path, Prediction)}
            loaded = datasets.load_dataset(store, batch.dataset)
        except (RecordError, ValueError):  # its times count, this comparison goes without
            continue
        if batch.model is None or not sent or any(map(starts_empty, sent)):
            continue
        by_id = {frame.id: frame for frame in loaded.frames}
        answers = datasets.read_json_lines(store.payload(ref, "answers.jsonl"), AnswerRow)
        for row in answers:
            if row.minutes and not is_replay(row.annotator) and row.frame not in batch.gold:
                frames.append(by_id[row.frame])
                seconds.append(row.minutes * 60)
                empty.append(starts_empty(row.frame))
    if not 0 < sum(empty) < len(empty):
        return None
    units = resampling_units(frames)
    arms = np.array(empty, np.int64)
    count, total = np.zeros((2, units.count, 2))
    np.add.at(count, (units.of, arms), 1)
    np.add.at(total, (units.of, arms), seconds)
    drawn = draw_resamples(units.count, _RESAMPLES, seed=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (drawn @ total) / (drawn @ count)  # NaN where no frame of an arm was drawn
    ratios = mean[:, 0] / mean[:, 1]
    interval = None
    if units.count > 1:
        tail = expanded_tail(units.count, _CONFIDENCE)
        low, high = np.nanquantile(ratios[1:], [tail, 1 - tail])
        interval = (round(float(low), 3), round(float(high), 3))
    return FirstBoxesEffect(
        with_boxes=len(empty) - sum(empty),
        without_boxes=sum(empty),
        seconds_with=round(float(mean[0, 0]), 3),
        seconds_without=round(float(mean[0, 1]), 3),
        ratio=round(float(ratios[0]), 3),
        interval=interval,
        units=units.name,
    )


def minutes_by_frame(store: Store, labelset: Ref) -> dict[Digest, float | None]:
    """Working time of all labelers on each answered or skipped frame.

    Returns:
        Minutes by frame; None where the time was not measured, as in a replay.
    """
    answers = datasets.read_json_lines(store.payload(labelset, "answers.jsonl"), AnswerRow)
    totals: dict[Digest, float | None] = {}
    for row in answers:
        minutes = None if is_replay(row.annotator) else row.minutes
        before = totals.get(row.frame, 0.0)
        totals[row.frame] = None if minutes is None or before is None else before + minutes
    return totals
