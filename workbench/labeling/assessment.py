"""A label set's agreement as a record: by class, slice and labeler, and where labelers disagree."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from workbench.labeling.agreement import Comparison, compare, compare_all, rate
from workbench.labeling.answers import AnswerRow
from workbench.labeling.attention import slices_of
from workbench.labeling.consensus import RULE, SAME_OBJECT_IOU, disputes
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, Row
from workbench.records.frames import Frame, Label
from workbench.records.store import Store
from workbench.records.types import Agreement, LabelBatch, LabelSet, Rate

Answers = dict[Digest, dict[str, list[Label]]]
"""Frame to labeler to their labels; whoever skipped is not in it."""

_TRUTH: Literal["gold"] = "gold"


class Disagreement(Row):
    """What labelers of one frame disagree about, in words that name nobody."""

    frame: Digest
    reasons: tuple[str, ...]


def read_answers(store: Store, labelset: Ref) -> Answers:
    """A label set's labels by frame and labeler, those who drew nothing included."""
    found: Answers = defaultdict(dict)
    for row in datasets.read_lines(store.payload(labelset, "answers.jsonl"), AnswerRow):
        if not row.skipped:
            found[row.frame][row.annotator] = []
    for label in datasets.read_lines(store.payload(labelset, "labels.jsonl"), Label):
        found[label.frame][label.annotator].append(label)
    return dict(found)


def disagreements(answers: Answers) -> list[Disagreement]:
    """Frames that labelers disagree about."""
    found = ((frame, disputes(by_person)) for frame, by_person in sorted(answers.items()))
    return [Disagreement(frame=frame, reasons=tuple(why)) for frame, why in found if why]


def assess(store: Store, labelset_ref: Ref) -> Ref:
    """Keep how far the labelers of a label set agree, with each other and with gold frames."""
    record = store.get(labelset_ref, LabelSet)
    batch = store.get(record.batch, LabelBatch)
    answers = read_answers(store, labelset_ref)
    gold = set(batch.gold)
    wanted = {frame for frame, people in answers.items() if len(people) > 1 or frame in gold}
    rows = store.payload(batch.dataset, "frames.jsonl")
    frames = {one.id: one for one in datasets.read_lines(rows, Frame) if one.id in wanted}
    truth = _truth(store, batch) if gold else {}
    compared = compare_all({frame: answers[frame] for frame in sorted(wanted)})
    measured = [
        compare(frame, person, labels, _TRUTH, truth.get(frame, ()))
        for frame in sorted(wanted & gold)
        for person, labels in sorted(answers[frame].items())
    ]
    slices = {
        frame: slices_of(
            frames[frame],
            (label.cls for theirs in answers[frame].values() for label in theirs),
            batch.label_schema,
        )
        for frame in wanted
    }
    disputed = disagreements(answers)
    agreement = Agreement(
        labels=labelset_ref,
        same_object_iou=SAME_OBJECT_IOU,
        rule=RULE,
        rates=(*_rates(compared, slices), *_gold_rates(measured)),
        frames=len(wanted),
        disputed=len(disputed),
        simulated=record.simulated,
    )
    return store.put(agreement, {"disagreements.jsonl": datasets.lines(disputed)})


def _truth(store: Store, batch: LabelBatch) -> dict[Digest, list[Label]]:
    gold = set(batch.gold)
    found: dict[Digest, list[Label]] = defaultdict(list)
    for label in datasets.read_lines(store.payload(batch.dataset, "labels.jsonl"), Label):
        if label.frame in gold and label.origin.is_ground_truth:
            found[label.frame].append(label)
    return found


def _rates(compared: list[Comparison], slices: dict[Digest, tuple[str, ...]]) -> list[Rate]:
    if not compared:
        return []
    both = [*compared, *(one.reversed() for one in compared)]
    classes = {name for one in both for pair in one.matched for name in pair[:2]}
    classes |= {name for one in both for name in one.extra}
    names = sorted({name for one in compared for name in slices[one.frame]})
    return [
        rate(compared, "all", "all"),
        *(rate([one.of_class(cls) for one in compared], "class", cls) for cls in sorted(classes)),
        *(
            rate([one for one in compared if name in slices[one.frame]], "slice", name)
            for name in names
        ),
        *(
            rate([one for one in both if one.who == who], "labeler", who)
            for who in sorted({one.who for one in both})
        ),
    ]


def _gold_rates(measured: list[Comparison]) -> list[Rate]:
    if not measured:
        return []
    people = sorted({one.who for one in measured})
    return [
        rate(measured, "all", "all", _TRUTH),
        *(
            rate([one for one in measured if one.who == who], "labeler", who, _TRUTH)
            for who in people
        ),
    ]
