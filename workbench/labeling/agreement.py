"""Agreement between labelers and with gold frames, and the consensus of several answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.types import Json
from workbench.data.slices import frame_slices
from workbench.detection import boxes
from workbench.detection.boxes import match_optimal
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset
from workbench.records.base import Digest, FrozenModel, Ref
from workbench.records.frames import Frame, Label
from workbench.records.store import Store
from workbench.records.types import Agreement, AgreementRate, LabelBatch, LabelSet

__all__ = ["assess_agreement"]

_SAME_OBJECT_IOU = 0.5

_CONSENSUS_RULE = (
    "adjudicated frames: the adjudicator's boxes; three labelers or more: objects that more than"
    " half drew, with the class that most gave and the box that overlaps the others' best; else:"
    " one labeler's boxes, drawn by the digest of frame and labeler"
)
"""How several answers to a frame become one set of labels; part of records, so never edited."""

_LabelsByFrame = dict[Digest, dict[str, list[Label]]]
"""Frame to labeler to labels; without those who skipped the frame."""

_MAJORITY_FROM = 3
_RESAMPLES = 1000
_SEED = 0
_PERCENTILES = (2.5, 97.5)

_Floats = NDArray[np.float64]


class Disagreement(FrozenModel):
    """What the labelers of one frame disagree about, without their names."""

    frame: Digest
    reasons: tuple[str, ...]


def assess_agreement(store: Store, labelset_ref: Ref) -> Ref:
    """Save the agreement of a label set's labelers with each other and with gold frames.

    Returns:
        An Agreement record: rates for all frames and by class, slice and labeler.
    """
    record = store.get(labelset_ref, LabelSet)
    batch = store.get(record.batch, LabelBatch)
    answers = load_answers(store, labelset_ref)
    gold = set(batch.gold)
    compared = sorted(frame for frame, some in answers.items() if len(some) > 1 or frame in gold)
    truth = _gold_labels(store, batch) if gold else {}
    pairs = _compare_labelers({frame: answers[frame] for frame in compared})
    gold_pairs = [
        compare_answers(frame, labeler, labels, "gold", truth.get(frame, ()))
        for frame in compared
        if frame in gold
        for labeler, labels in sorted(answers[frame].items())
    ]
    rows = dataset.read_json_lines(store.payload(batch.dataset, "frames.jsonl"), Frame)
    wanted = set(compared)
    slices = {
        frame.id: frame_slices(
            frame,
            (label.cls for labels in answers[frame.id].values() for label in labels),
            batch.label_schema,
        )
        for frame in rows
        if frame.id in wanted
    }
    gold_rates = _labeler_rates(gold_pairs, "gold")
    if gold_pairs:
        gold_rates.insert(0, agreement_rate(gold_pairs, "all", "all", "gold"))
    disagreements = find_disagreements(answers)
    agreement = Agreement(
        labels=labelset_ref,
        same_object_iou=_SAME_OBJECT_IOU,
        rule=_CONSENSUS_RULE,
        rates=(*_rates(pairs, slices), *gold_rates),
        frames=len(compared),
        disputed=len(disagreements),
        simulated=record.simulated,
    )
    return store.put(agreement, {"disagreements.jsonl": dataset.to_json_lines(disagreements)})


def load_answers(store: Store, labelset: Ref) -> _LabelsByFrame:
    """Labels of a label set by frame and labeler, answers without objects included."""
    return group_answers(
        dataset.read_json_lines(store.payload(labelset, "labels.jsonl"), Label),
        dataset.read_json_lines(store.payload(labelset, "answers.jsonl"), AnswerRow),
    )


def group_answers(labels: Iterable[Label], answers: Iterable[AnswerRow]) -> _LabelsByFrame:
    """Group labels by frame and labeler.

    Args:
        labels: Labels without a row in ``answers`` are left out.
        answers: Rows without labels become empty lists; skips are left out.
    """
    by_frame: _LabelsByFrame = defaultdict(dict)
    for answer in answers:
        if not answer.skipped:
            by_frame[answer.frame][answer.annotator] = []
    for label in labels:
        if label.frame in by_frame and label.annotator in by_frame[label.frame]:
            by_frame[label.frame][label.annotator].append(label)
    return dict(by_frame)


def _gold_labels(store: Store, batch: LabelBatch) -> dict[Digest, list[Label]]:
    gold = set(batch.gold)
    by_frame: dict[Digest, list[Label]] = defaultdict(list)
    for label in dataset.read_json_lines(store.payload(batch.dataset, "labels.jsonl"), Label):
        if label.frame in gold and label.origin.is_ground_truth:
            by_frame[label.frame].append(label)
    return by_frame


# Consensus


@dataclass(frozen=True)
class _ObjectGroup:
    """One object as drawn by each labeler who saw it, ordered by labeler."""

    drawn: tuple[Label, ...]

    @property
    def cls(self) -> str:
        """The most frequent class; ties go to the first by name."""
        counts = Counter(label.cls for label in self.drawn)
        return min(counts, key=lambda name: (-counts[name], name))

    @property
    def best(self) -> Label:
        """Of the labels with the most frequent class, the one that overlaps the others best."""
        if len(self.drawn) == 1:
            return self.drawn[0]
        corners = boxes.boxes_to_array(label.box for label in self.drawn)
        overlap = boxes.iou_matrix(corners, corners).sum(axis=1)
        candidates = [i for i, label in enumerate(self.drawn) if label.cls == self.cls]
        return self.drawn[max(candidates, key=lambda i: (round(float(overlap[i]), 9), -i))]


def group_objects(by_labeler: Mapping[str, Sequence[Label]]) -> list[_ObjectGroup]:
    """Group the labels of several labelers by object, regardless of class.

    Labelers are taken in order of their names. Each one's boxes are matched one to one with the
    groups so far, with the largest total IoU and at least `_SAME_OBJECT_IOU` each.
    """
    groups: list[list[Label]] = []
    for labeler in sorted(by_labeler):
        labels = list(by_labeler[labeler])
        means = boxes.as_boxes(
            [np.mean([label.box.xyxy for label in group], axis=0) for group in groups]
        )
        corners = boxes.boxes_to_array(label.box for label in labels)
        matches = match_optimal(means, corners, iou=_SAME_OBJECT_IOU)
        group_of = {int(j): int(i) for i, j in matches}
        for number, label in enumerate(labels):
            if number in group_of:
                groups[group_of[number]].append(label)
            else:
                groups.append([label])
    return [_ObjectGroup(tuple(group)) for group in groups]


def consensus_labels(frame: Digest, by_labeler: Mapping[str, Sequence[Label]]) -> list[Label]:
    """One set of labels for a frame, by `_CONSENSUS_RULE`."""
    if len(by_labeler) < _MAJORITY_FROM:
        return list(by_labeler[preferred_labeler(frame, list(by_labeler))])
    majority = len(by_labeler) / 2
    return [group.best for group in group_objects(by_labeler) if len(group.drawn) > majority]


def preferred_labeler(frame: Digest, labelers: Sequence[str]) -> str:
    """The labeler whose boxes are used, chosen by digest; favours neither speed nor diligence."""
    return min(labelers, key=lambda labeler: digest.of_bytes(f"{frame} {labeler}".encode()))


def find_disagreements(answers: _LabelsByFrame) -> list[Disagreement]:
    """Frames whose labelers disagree, ordered by digest."""
    reasons = {frame: describe_disputes(answers[frame]) for frame in sorted(answers)}
    return [Disagreement(frame=frame, reasons=tuple(why)) for frame, why in reasons.items() if why]


def describe_disputes(by_labeler: Mapping[str, Sequence[Label]]) -> list[str]:
    """What the labelers of one frame disagree about, without their names; ignore areas excluded."""
    scored = {who: [one for one in labels if not one.ignore] for who, labels in by_labeler.items()}
    if len(scored) < 2:
        return []
    disputes: Counter[str] = Counter()
    for group in group_objects(scored):
        classes = sorted({label.cls for label in group.drawn})
        if len(group.drawn) < len(scored):
            disputes[f"a {group.cls} drawn by {len(group.drawn)} of {len(scored)}"] += 1
        elif len(classes) > 1:
            disputes[f"one object called {' and '.join(classes)}"] += 1
    return [f"{text} ({count}x)" if count > 1 else text for text, count in sorted(disputes.items())]


# Pairwise comparison


@dataclass(frozen=True)
class AnswerComparison:
    """Two answers to one frame, matched one to one with the largest total IoU, whatever the class.

    Ignore areas are excluded.

    Attributes:
        matched: Class of ``who``, class of ``other``, IoU (at least `_SAME_OBJECT_IOU`).
        extra: Classes of boxes of ``who`` without a match.
        lacking: Classes of boxes of ``other`` without a match.
    """

    frame: Digest
    who: str
    other: str
    matched: tuple[tuple[str, str, float], ...]
    extra: tuple[str, ...]
    lacking: tuple[str, ...]

    def reversed(self) -> AnswerComparison:
        matched = tuple((theirs, ours, overlap) for ours, theirs, overlap in self.matched)
        return AnswerComparison(self.frame, self.other, self.who, matched, self.lacking, self.extra)

    def of_class(self, cls: str) -> AnswerComparison:
        """Only the boxes that either answer gives this class."""
        return AnswerComparison(
            self.frame,
            self.who,
            self.other,
            tuple(pair for pair in self.matched if cls in pair[:2]),
            tuple(name for name in self.extra if name == cls),
            tuple(name for name in self.lacking if name == cls),
        )


def compare_answers(
    frame: Digest, who: str, ours: Iterable[Label], other: str, theirs: Iterable[Label]
) -> AnswerComparison:
    """Match two answers to one frame.

    Args:
        who, other: Names of the two sides.
        ours, theirs: Their labels.
    """
    left = [label for label in ours if not label.ignore]
    right = [label for label in theirs if not label.ignore]
    first = boxes.boxes_to_array(label.box for label in left)
    second = boxes.boxes_to_array(label.box for label in right)
    matches = match_optimal(first, second, iou=_SAME_OBJECT_IOU)
    overlap = boxes.iou_matrix(first, second)
    in_left, in_right = {int(i) for i, _ in matches}, {int(j) for _, j in matches}
    return AnswerComparison(
        frame,
        who,
        other,
        tuple((left[i].cls, right[j].cls, float(overlap[i, j])) for i, j in matches),
        tuple(label.cls for i, label in enumerate(left) if i not in in_left),
        tuple(label.cls for j, label in enumerate(right) if j not in in_right),
    )


def _compare_labelers(
    answers: Mapping[Digest, Mapping[str, Sequence[Label]]],
) -> list[AnswerComparison]:
    """Every pair of labelers on every frame that more than one of them answered."""
    return [
        compare_answers(frame, first, by_labeler[first], second, by_labeler[second])
        for frame, by_labeler in answers.items()
        for first, second in combinations(sorted(by_labeler), 2)
    ]


def measure_agreement(answers: Mapping[Digest, Mapping[str, Sequence[Label]]]) -> Json:
    """Summary of the agreement over frames that more than one labeler answered.

    Returns:
        ``frames`` and ``boxes`` compared, ``mean_iou`` of matched boxes, ``missed_rate`` (share of
        boxes without a match), ``class_agreement`` among matched boxes, and the consensus ``rule``.
        Rates are None without any comparison.
    """
    comparisons = _compare_labelers(answers)
    matched = [pair for one in comparisons for pair in one.matched]
    unmatched = sum(len(one.extra) + len(one.lacking) for one in comparisons)
    total = 2 * len(matched) + unmatched
    same_class = sum(ours == theirs for ours, theirs, _ in matched)
    overlaps = [overlap for _, _, overlap in matched]
    return {
        "frames": sum(len(by_labeler) > 1 for by_labeler in answers.values()),
        "boxes": total,
        "mean_iou": round(float(np.mean(overlaps)), 6) if matched else None,
        "missed_rate": round(unmatched / total, 6) if total else None,
        "class_agreement": round(same_class / len(matched), 6) if matched else None,
        "rule": _CONSENSUS_RULE,
    }


# Rates with intervals


def _rates(
    pairs: list[AnswerComparison], slices: dict[Digest, tuple[str, ...]]
) -> list[AgreementRate]:
    """Rates of labelers with each other: for all frames, by class, slice and labeler."""
    if not pairs:
        return []
    both = [*pairs, *(one.reversed() for one in pairs)]
    classes = {name for one in both for pair in one.matched for name in pair[:2]}
    classes |= {name for one in both for name in one.extra}
    rates = [agreement_rate(pairs, "all", "all")]
    for cls in sorted(classes):
        rates.append(agreement_rate([one.of_class(cls) for one in pairs], "class", cls))
    for name in sorted({name for one in pairs for name in slices[one.frame]}):
        inside = [one for one in pairs if name in slices[one.frame]]
        rates.append(agreement_rate(inside, "slice", name))
    return [*rates, *_labeler_rates(both, "labelers")]


def _labeler_rates(
    pairs: list[AnswerComparison], against: Literal["labelers", "gold"]
) -> list[AgreementRate]:
    return [
        agreement_rate([one for one in pairs if one.who == who], "labeler", who, against)
        for who in sorted({one.who for one in pairs})
    ]


def agreement_rate(
    comparisons: Sequence[AnswerComparison],
    subject: Literal["all", "class", "slice", "labeler"],
    name: str,
    against: Literal["labelers", "gold"] = "labelers",
) -> AgreementRate:
    """Agreement metrics with 95 % bootstrap intervals over frames.

    Args:
        comparisons: Comparisons that belong to the subject.
        name: Class, slice or labeler; ``all`` for all.

    Returns:
        Mean IoU of matched boxes. ``missed``: share of boxes without a match; for one labeler, the
        share of the other side's boxes that they missed. ``kappa``: Cohen's kappa of the classes of
        matched boxes; for a class, of that class against all others.
    """
    one_sided = subject == "labeler" or against == "gold"
    frames = sorted({one.frame for one in comparisons})
    row_of = {frame: number for number, frame in enumerate(frames)}
    classes = sorted({cls for one in comparisons for pair in one.matched for cls in pair[:2]})
    if subject == "class" or not classes:
        classes = [name, ""]
    table = np.zeros((len(frames), 4 + len(classes) ** 2))
    for one in comparisons:
        _add_comparison(table[row_of[one.frame]], one, classes, one_sided)
    iou, missed, kappa = _metrics(table.sum(axis=0, keepdims=True), len(classes))
    # A single frame says nothing about the variation between frames.
    spread: tuple[Any, ...] = (None,) * 3
    if len(frames) > 1:
        spread = _metrics(_resample_sums(table), len(classes))
    return AgreementRate(
        subject=subject,
        name=name,
        against=against,
        frames=len(frames),
        n=int(table[:, 3].sum()),
        iou=_rounded(iou),
        iou_interval=_interval(spread[0]),
        missed=_rounded(missed),
        missed_interval=_interval(spread[1]),
        kappa=_rounded(kappa),
        kappa_interval=_interval(spread[2]),
    )


def _add_comparison(
    row: _Floats, one: AnswerComparison, classes: list[str], one_sided: bool
) -> None:
    """Add a comparison to its frame's sums: IoU, pairs, missed, boxes, then class by class."""
    row[0] += sum(overlap for _, _, overlap in one.matched)
    row[1] += len(one.matched)
    missed = len(one.lacking) + (0 if one_sided else len(one.extra))
    row[2] += missed
    row[3] += (1 if one_sided else 2) * len(one.matched) + missed
    other = classes.index("") if "" in classes else -1
    position = {cls: number for number, cls in enumerate(classes)}
    for ours, theirs, _ in one.matched:
        i, j = position.get(ours, other), position.get(theirs, other)
        row[4 + i * len(classes) + j] += 1
        if not one_sided:  # neither labeler is the reference
            row[4 + j * len(classes) + i] += 1


def _resample_sums(table: _Floats) -> _Floats:
    """Sums over bootstrap samples of the rows."""
    count = len(table)
    draws = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), _RESAMPLES)
    sums: _Floats = draws @ table
    return sums


def _metrics(sums: _Floats, classes: int) -> tuple[_Floats, _Floats, _Floats]:
    """Mean IoU, missed rate and kappa of each row of sums; NaN where undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = sums[:, 0] / sums[:, 1]
        missed = sums[:, 2] / sums[:, 3]
        confusion = sums[:, 4:].reshape(-1, classes, classes)
        total = confusion.sum(axis=(1, 2))
        observed = np.trace(confusion, axis1=1, axis2=2) / total
        expected = (confusion.sum(axis=1) * confusion.sum(axis=2)).sum(axis=1) / total**2
        kappa = (observed - expected) / (1 - expected)
    # With a single class, kappa is undefined.
    return iou, missed, np.where(expected >= 1 - 1e-12, np.nan, kappa)


def _rounded(values: _Floats) -> float | None:
    return None if np.isnan(values[0]) else round(float(values[0]), 6)


def _interval(values: _Floats | None) -> tuple[float, float] | None:
    known = values[~np.isnan(values)] if values is not None else np.zeros(0)
    if not len(known):
        return None
    low, high = np.percentile(known, _PERCENTILES)
    return (round(float(low), 6), round(float(high), 6))
