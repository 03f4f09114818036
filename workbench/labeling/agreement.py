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
from workbench.data.slices import frame_slices
from workbench.detection import boxes
from workbench.detection.boxes import match_optimal
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset
from workbench.records.base import Digest, FrozenModel, Ref
from workbench.records.frames import Frame, Label
from workbench.records.store import Store
from workbench.records.types import Agreement, AgreementRate, LabelBatch, LabelSet

SAME_OBJECT_IOU = 0.5

CONSENSUS_RULE = (
    "adjudicated frames: the adjudicator's boxes; three labelers or more: objects that more than"
    " half drew, with the class that most gave and the box that overlaps the others' best; else:"
    " one labeler's boxes, drawn by the digest of frame and labeler"
)
"""How a frame with several answers becomes one set of labels."""

_MAJORITY_FROM = 3


@dataclass(frozen=True)
class ObjectGroup:
    """One object, as each labeler who saw it drew it. ``drawn`` is in order of their names."""

    drawn: tuple[Label, ...]

    @property
    def cls(self) -> str:
        """What most called it; of equally many, the first by name."""
        counts = Counter(label.cls for label in self.drawn)
        return min(counts, key=lambda name: (-counts[name], name))

    @property
    def best(self) -> Label:
        """The drawing of the leading class that overlaps the others best."""
        if len(self.drawn) == 1:
            return self.drawn[0]
        corners = boxes.boxes_to_array(label.box for label in self.drawn)
        total = boxes.iou_matrix(corners, corners).sum(axis=1)
        fitting = [i for i, label in enumerate(self.drawn) if label.cls == self.cls]
        return self.drawn[max(fitting, key=lambda i: (round(float(total[i]), 9), -i))]


def preferred_labeler(frame: Digest, annotators: Sequence[str]) -> str:
    """The labeler whose boxes are taken, see `RULE`. Neither speed nor diligence is favoured."""
    return min(annotators, key=lambda person: digest.of_bytes(f"{frame} {person}".encode()))


def group_objects(by_person: Mapping[str, Sequence[Label]]) -> list[ObjectGroup]:
    """Which drawings of several labelers show the same object.

    Labelers are taken in order of their names; each one's boxes are matched one to one with what
    is there already, with the largest total overlap and at least 0.5, whatever their class.
    """
    groups: list[list[Label]] = []
    for person in sorted(by_person):
        theirs = list(by_person[person])
        # An object stands where those who drew it put it on average.
        centres = boxes.as_boxes(
            [np.mean([label.box.xyxy for label in group], axis=0) for group in groups]
        )
        ours = boxes.boxes_to_array(label.box for label in theirs)
        pairs = {int(j): int(i) for i, j in match_optimal(centres, ours, iou=SAME_OBJECT_IOU)}
        for number, label in enumerate(theirs):
            if number in pairs:
                groups[pairs[number]].append(label)
            else:
                groups.append([label])
    return [ObjectGroup(tuple(group)) for group in groups]


def describe_disputes(by_person: Mapping[str, Sequence[Label]]) -> list[str]:
    """What labelers of one frame disagree about, in words that name nobody; ignore areas apart."""
    scored = {who: [one for one in said if not one.ignore] for who, said in by_person.items()}
    if len(scored) < 2:
        return []
    found: Counter[str] = Counter()
    for thing in group_objects(scored):
        classes = sorted({label.cls for label in thing.drawn})
        if len(thing.drawn) < len(scored):
            found[f"a {thing.cls} drawn by {len(thing.drawn)} of {len(scored)}"] += 1
        elif len(classes) > 1:
            found[f"one object called {' and '.join(classes)}"] += 1
    return [f"{text} ({count}x)" if count > 1 else text for text, count in sorted(found.items())]


def consensus_labels(frame: Digest, by_person: Mapping[str, Sequence[Label]]) -> list[Label]:
    """One set of labels for a frame, by `RULE`."""
    if len(by_person) < _MAJORITY_FROM:
        return list(by_person[preferred_labeler(frame, list(by_person))])
    wanted = len(by_person) / 2
    return [thing.best for thing in group_objects(by_person) if len(thing.drawn) > wanted]


# ---- How far labelers agree, with each other and with frames whose labels are trusted.


RESAMPLES = 1000
_SEED = 0
_PERCENTILES = (2.5, 97.5)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AnswerComparison:
    """Two answers to one frame. ``matched`` are (class, other class, overlap); the rest classes.

    ``extra`` are boxes of ``who`` that ``other`` lacks, ``lacking`` the other way round. Boxes are
    matched one to one with the largest total overlap, at least 0.5, whatever their class; ignore
    areas take no part.
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
        """Only what either called ``cls``."""
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
    left = [label for label in ours if not label.ignore]
    right = [label for label in theirs if not label.ignore]
    first = boxes.boxes_to_array(label.box for label in left)
    second = boxes.boxes_to_array(label.box for label in right)
    pairs = match_optimal(first, second, iou=SAME_OBJECT_IOU)
    overlap = boxes.iou_matrix(first, second)
    seen, known = {int(i) for i, _ in pairs}, {int(j) for _, j in pairs}
    return AnswerComparison(
        frame,
        who,
        other,
        tuple((left[i].cls, right[j].cls, float(overlap[i, j])) for i, j in pairs),
        tuple(label.cls for i, label in enumerate(left) if i not in seen),
        tuple(label.cls for j, label in enumerate(right) if j not in known),
    )


def compare_labelers(
    answers: Mapping[Digest, Mapping[str, Sequence[Label]]],
) -> list[AnswerComparison]:
    """Every pair of labelers on every frame that more than one answered."""
    return [
        compare_answers(frame, first, by_person[first], second, by_person[second])
        for frame, by_person in answers.items()
        for first, second in combinations(sorted(by_person), 2)
    ]


def measure_agreement(answers: Mapping[Digest, Mapping[str, Sequence[Label]]]) -> dict[str, Any]:
    """Agreement over frames that more than one labeler answered, skips left out, in short.

    Returns:
        ``frames`` and ``boxes`` compared, ``mean_iou`` of matched boxes, ``missed_rate`` (the
        share of boxes that the other labeler has no match for), ``class_agreement`` among matched
        boxes, and the consensus ``rule``. Rates are None where nothing could be compared.
    """
    compared = compare_labelers(answers)
    matched = [pair for one in compared for pair in one.matched]
    alone = sum(len(one.extra) + len(one.lacking) for one in compared)
    total = 2 * len(matched) + alone
    same = sum(ours == theirs for ours, theirs, _ in matched)
    overlap = [value for _, _, value in matched]
    return {
        "frames": sum(len(by_person) > 1 for by_person in answers.values()),
        "boxes": total,
        "mean_iou": round(float(np.mean(overlap)), 6) if matched else None,
        "missed_rate": round(alone / total, 6) if total else None,
        "class_agreement": round(same / len(matched), 6) if matched else None,
        "rule": CONSENSUS_RULE,
    }


def agreement_rate(
    compared: Sequence[AnswerComparison],
    subject: Literal["all", "class", "slice", "labeler"],
    name: str,
    against: Literal["labelers", "gold"] = "labelers",
) -> AgreementRate:
    """One row of figures with their intervals, by resampling frames.

    ``missed`` is the share of boxes that one of the two has no match for; for a labeler, the
    share of the other side's boxes that they lack. ``kappa`` is Cohen's, of classes among
    matched boxes; for a class, of that class against all others.
    """
    one_sided = subject == "labeler" or against == "gold"
    frames = sorted({one.frame for one in compared})
    place = {frame: number for number, frame in enumerate(frames)}
    classes = sorted({cls for one in compared for pair in one.matched for cls in pair[:2]})
    if subject == "class" or not classes:
        classes = [name, ""]
    table = np.zeros((len(frames), 4 + len(classes) ** 2))
    for one in compared:
        _add_comparison(table[place[one.frame]], one, classes, one_sided)
    iou, missed, kappa = _agreement_metrics(table.sum(axis=0, keepdims=True), len(classes))
    # One frame says nothing of how much frames differ.
    spread = (
        _agreement_metrics(_resample_sums(table), len(classes)) if len(frames) > 1 else (None,) * 3
    )
    return AgreementRate(
        subject=subject,
        name=name,
        against=against,
        frames=len(frames),
        n=int(table[:, 3].sum()),
        iou=_rounded(iou),
        iou_interval=_percentile_interval(spread[0]),
        missed=_rounded(missed),
        missed_interval=_percentile_interval(spread[1]),
        kappa=_rounded(kappa),
        kappa_interval=_percentile_interval(spread[2]),
    )


def _resample_sums(table: Floats) -> Floats:
    """Sums over as many frames as there are, drawn with replacement, again and again."""
    count = len(table)
    draws = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    sums: Floats = draws @ table
    return sums


def _add_comparison(
    row: Floats, one: AnswerComparison, classes: list[str], one_sided: bool
) -> None:
    """Add a comparison to its frame's sums: overlap, pairs, missed, boxes, then class by class."""
    row[0] += sum(overlap for _, _, overlap in one.matched)
    row[1] += len(one.matched)
    sides = 1 if one_sided else 2
    alone = len(one.lacking) + (0 if one_sided else len(one.extra))
    row[2] += alone
    row[3] += sides * len(one.matched) + alone
    for ours, theirs, _ in one.matched:
        i, j = _class_index(classes, ours), _class_index(classes, theirs)
        row[4 + i * len(classes) + j] += 1
        if not one_sided:  # neither is the first
            row[4 + j * len(classes) + i] += 1


def _class_index(classes: list[str], cls: str) -> int:
    return classes.index(cls) if cls in classes else classes.index("")


def _agreement_metrics(sums: Floats, classes: int) -> tuple[Floats, Floats, Floats]:
    """Mean overlap, missed rate and kappa of each row of sums; NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = sums[:, 0] / sums[:, 1]
        missed = sums[:, 2] / sums[:, 3]
        confusion = sums[:, 4:].reshape(-1, classes, classes)
        total = confusion.sum(axis=(1, 2))
        seen = np.trace(confusion, axis1=1, axis2=2) / total
        chance = (confusion.sum(axis=1) * confusion.sum(axis=2)).sum(axis=1) / total**2
        kappa = (seen - chance) / (1 - chance)
    # With one class only there is nothing to confuse, and kappa says nothing.
    return iou, missed, np.where(chance >= 1 - 1e-12, np.nan, kappa)


def _rounded(figures: Floats) -> float | None:
    return None if np.isnan(figures[0]) else round(float(figures[0]), 6)


def _percentile_interval(figures: Floats | None) -> tuple[float, float] | None:
    known = figures[~np.isnan(figures)] if figures is not None else np.zeros(0)
    if not len(known):
        return None
    low, high = np.percentile(known, _PERCENTILES)
    return (round(float(low), 6), round(float(high), 6))


# ---- A label set's agreement as a record: by class, slice and labeler, and where labelers disagree.


LabelsByFrame = dict[Digest, dict[str, list[Label]]]
"""Frame to labeler to their labels; whoever skipped is not in it."""

_GOLD: Literal["gold"] = "gold"


class Disagreement(FrozenModel):
    """What labelers of one frame disagree about, in words that name nobody."""

    frame: Digest
    reasons: tuple[str, ...]


def load_answers(store: Store, labelset: Ref) -> LabelsByFrame:
    """A label set's labels by frame and labeler, those who drew nothing included."""
    found: LabelsByFrame = defaultdict(dict)
    for row in dataset.read_json_lines(store.payload(labelset, "answers.jsonl"), AnswerRow):
        if not row.skipped:
            found[row.frame][row.annotator] = []
    for label in dataset.read_json_lines(store.payload(labelset, "labels.jsonl"), Label):
        found[label.frame][label.annotator].append(label)
    return dict(found)


def find_disagreements(answers: LabelsByFrame) -> list[Disagreement]:
    """Frames that labelers disagree about."""
    found = ((frame, describe_disputes(by_person)) for frame, by_person in sorted(answers.items()))
    return [Disagreement(frame=frame, reasons=tuple(why)) for frame, why in found if why]


def assess_agreement(store: Store, labelset_ref: Ref) -> Ref:
    """Keep how far the labelers of a label set agree, with each other and with gold frames."""
    record = store.get(labelset_ref, LabelSet)
    batch = store.get(record.batch, LabelBatch)
    answers = load_answers(store, labelset_ref)
    gold = set(batch.gold)
    wanted = {frame for frame, people in answers.items() if len(people) > 1 or frame in gold}
    rows = store.payload(batch.dataset, "frames.jsonl")
    frames = {one.id: one for one in dataset.read_json_lines(rows, Frame) if one.id in wanted}
    truth = _gold_labels(store, batch) if gold else {}
    compared = compare_labelers({frame: answers[frame] for frame in sorted(wanted)})
    measured = [
        compare_answers(frame, person, labels, _GOLD, truth.get(frame, ()))
        for frame in sorted(wanted & gold)
        for person, labels in sorted(answers[frame].items())
    ]
    slices = {
        frame: frame_slices(
            frames[frame],
            (label.cls for theirs in answers[frame].values() for label in theirs),
            batch.label_schema,
        )
        for frame in wanted
    }
    disputed = find_disagreements(answers)
    agreement = Agreement(
        labels=labelset_ref,
        same_object_iou=SAME_OBJECT_IOU,
        rule=CONSENSUS_RULE,
        rates=(*_rates(compared, slices), *_gold_rates(measured)),
        frames=len(wanted),
        disputed=len(disputed),
        simulated=record.simulated,
    )
    return store.put(agreement, {"disagreements.jsonl": dataset.to_json_lines(disputed)})


def _gold_labels(store: Store, batch: LabelBatch) -> dict[Digest, list[Label]]:
    gold = set(batch.gold)
    found: dict[Digest, list[Label]] = defaultdict(list)
    for label in dataset.read_json_lines(store.payload(batch.dataset, "labels.jsonl"), Label):
        if label.frame in gold and label.origin.is_ground_truth:
            found[label.frame].append(label)
    return found


def _rates(
    compared: list[AnswerComparison], slices: dict[Digest, tuple[str, ...]]
) -> list[AgreementRate]:
    if not compared:
        return []
    both = [*compared, *(one.reversed() for one in compared)]
    classes = {name for one in both for pair in one.matched for name in pair[:2]}
    classes |= {name for one in both for name in one.extra}
    names = sorted({name for one in compared for name in slices[one.frame]})
    return [
        agreement_rate(compared, "all", "all"),
        *(
            agreement_rate([one.of_class(cls) for one in compared], "class", cls)
            for cls in sorted(classes)
        ),
        *(
            agreement_rate([one for one in compared if name in slices[one.frame]], "slice", name)
            for name in names
        ),
        *(
            agreement_rate([one for one in both if one.who == who], "labeler", who)
            for who in sorted({one.who for one in both})
        ),
    ]


def _gold_rates(measured: list[AnswerComparison]) -> list[AgreementRate]:
    if not measured:
        return []
    people = sorted({one.who for one in measured})
    return [
        agreement_rate(measured, "all", "all", _GOLD),
        *(
            agreement_rate([one for one in measured if one.who == who], "labeler", who, _GOLD)
            for who in people
        ),
    ]
