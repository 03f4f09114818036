"""Several labelers' answers to one frame become one set of labels, by a stated rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench import digest
from workbench.perception import boxes
from workbench.perception.matching import match_optimal
from workbench.records.base import Digest
from workbench.records.frames import Label

SAME_OBJECT_IOU = 0.5

RULE = (
    "adjudicated frames: the adjudicator's boxes; three labelers or more: objects that more than"
    " half drew, with the class that most gave and the box that overlaps the others' best; else:"
    " one labeler's boxes, drawn by the digest of frame and labeler"
)
"""How a frame with several answers becomes one set of labels."""

_MANY = 3


@dataclass(frozen=True)
class Thing:
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
        corners = boxes.from_records(label.box for label in self.drawn)
        total = boxes.iou_matrix(corners, corners).sum(axis=1)
        fitting = [i for i, label in enumerate(self.drawn) if label.cls == self.cls]
        return self.drawn[max(fitting, key=lambda i: (round(float(total[i]), 9), -i))]


def preferred(frame: Digest, annotators: Sequence[str]) -> str:
    """The labeler whose boxes are taken, see `RULE`. Neither speed nor diligence is favoured."""
    return min(annotators, key=lambda person: digest.of_bytes(f"{frame} {person}".encode()))


def things(by_person: Mapping[str, Sequence[Label]]) -> list[Thing]:
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
        ours = boxes.from_records(label.box for label in theirs)
        pairs = {int(j): int(i) for i, j in match_optimal(centres, ours, iou=SAME_OBJECT_IOU)}
        for number, label in enumerate(theirs):
            if number in pairs:
                groups[pairs[number]].append(label)
            else:
                groups.append([label])
    return [Thing(tuple(group)) for group in groups]


def disputes(by_person: Mapping[str, Sequence[Label]]) -> list[str]:
    """What labelers of one frame disagree about, in words that name nobody; ignore areas apart."""
    scored = {who: [one for one in said if not one.ignore] for who, said in by_person.items()}
    if len(scored) < 2:
        return []
    found: Counter[str] = Counter()
    for thing in things(scored):
        classes = sorted({label.cls for label in thing.drawn})
        if len(thing.drawn) < len(scored):
            found[f"a {thing.cls} drawn by {len(thing.drawn)} of {len(scored)}"] += 1
        elif len(classes) > 1:
            found[f"one object called {' and '.join(classes)}"] += 1
    return [f"{text} ({count}x)" if count > 1 else text for text, count in sorted(found.items())]


def agreed(frame: Digest, by_person: Mapping[str, Sequence[Label]]) -> list[Label]:
    """One set of labels for a frame, by `RULE`."""
    if len(by_person) < _MANY:
        return list(by_person[preferred(frame, list(by_person))])
    wanted = len(by_person) / 2
    return [thing.best for thing in things(by_person) if len(thing.drawn) > wanted]
