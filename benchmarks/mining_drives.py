"""What is treated as rare in real drives, and what is then known of it: see `mining_real`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.records.dataset import Dataset
from workbench.records.frames import UNKNOWN, Conditions, Frame

RECORDED = (0.02, 0.25)
"""Shares of a pool between which a class is judged as recorded."""
THINNED = 0.10
"""Share that something more common is brought down to."""
LEAST_KNOWN, LEAST_POOL, MOST_DRIVES = 40, 100, 3
"""Frames to learn from, frames to choose from, and drives to learn from in turn."""

XYWH = tuple[float, float, float, float]


@dataclass(frozen=True)
class Rare:
    """What is treated as rare: the frames that have it, and its boxes where it is a class."""

    name: str
    frames: frozenset[str]
    boxes: dict[str, XYWH]


@dataclass(frozen=True)
class Split:
    """Rows of a dataset: ``known`` of ``drive`` are learned from, ``pool`` is of other drives."""

    rare: Rare
    drive: str
    known: tuple[Frame, ...]
    pool: tuple[Frame, ...]

    @property
    def share(self) -> float:
        return sum(frame.id in self.rare.frames for frame in self.pool) / len(self.pool)

    @property
    def can_be_thinned(self) -> bool:
        ordinary = (1 - self.share) * len(self.pool)
        return self.share > THINNED and ordinary >= (1 - THINNED) * LEAST_POOL


def splits(dataset: Dataset) -> list[Split]:
    """Each rare thing with each of the longest drives as the one that is known."""
    sizes = {one.id: sum(f.drive == one.id for f in dataset.frames) for one in dataset.drives}
    longest = sorted(sizes, key=lambda drive: (-sizes[drive], drive))[:MOST_DRIVES]
    found = []
    for rare in (*classes(dataset), *lights(dataset)):
        frames = dataset.frames if rare.boxes else tuple(map(unlit, dataset.frames))
        for drive in longest:
            own = tuple(f for f in frames if f.drive == drive and f.id not in rare.frames)
            others = tuple(f for f in frames if f.drive != drive)
            if len(own) < LEAST_KNOWN or len(others) < LEAST_POOL:
                continue
            split = Split(rare, drive, own, others)
            if RECORDED[0] <= split.share and (split.share <= RECORDED[1] or split.can_be_thinned):
                found.append(split)
    return found


def classes(dataset: Dataset) -> Iterator[Rare]:
    """Each class; a frame's exemplar box is its largest one."""
    for cls in dataset.label_schema.classes:
        boxes: dict[str, XYWH] = {}
        for one in dataset.labels:
            if (
                one.cls == cls
                and not one.ignore
                and one.box.w * one.box.h > _size(boxes, one.frame)
            ):
                boxes[one.frame] = (one.box.x, one.box.y, one.box.w, one.box.h)
        if boxes:
            yield Rare(cls, frozenset(boxes), boxes)


def _size(boxes: dict[str, XYWH], frame: str) -> float:
    return boxes[frame][2] * boxes[frame][3] if frame in boxes else 0.0


def lights(dataset: Dataset) -> Iterator[Rare]:
    """Each light that not all frames have."""
    told = sorted({frame.conditions.light for frame in dataset.frames} - {UNKNOWN})
    for light in told if len(told) > 1 else ():
        frames = frozenset(f.id for f in dataset.frames if f.conditions.light == light)
        yield Rare(light, frames, {})


def unlit(frame: Frame) -> Frame:
    return frame.model_copy(update={"conditions": Conditions()})


def groups(found: Sequence[Split]) -> Iterator[tuple[str, list[Split], bool]]:
    """Name, splits, and whether what is rare is made rarer."""
    for name in dict.fromkeys(split.rare.name for split in found):
        alike = [split for split in found if split.rare.name == name]
        recorded = [split for split in alike if split.share <= RECORDED[1]]
        thinned = [split for split in alike if split.can_be_thinned]
        if recorded:
            yield f"{name} as recorded", recorded, False
        if thinned:
            yield f"{name} thinned", thinned, True


def thinned(split: Split, seed: int) -> tuple[Frame, ...]:
    """The pool with as many rare frames as make `THINNED` of it, in whole events but the last."""
    rng = np.random.default_rng(seed)
    rare = [frame.id in split.rare.frames for frame in split.pool]
    left = round((len(rare) - sum(rare)) * THINNED / (1 - THINNED))
    kept = {row for row, flag in enumerate(rare) if not flag}
    events = list(runs([frame.drive for frame in split.pool], rare))
    for number in rng.permutation(len(events)):
        event = events[number]
        start = int(rng.integers(max(len(event) - left, 0) + 1))
        kept |= set(event[start : start + left])
        left -= min(left, len(event))
    return tuple(frame for row, frame in enumerate(split.pool) if row in kept)


def runs(drives: Sequence[str], flags: Sequence[bool]) -> Iterator[list[int]]:
    """Rows that follow each other in one drive and all have the flag."""
    found: dict[int, list[int]] = defaultdict(list)
    number = 0
    for at, flag in enumerate(flags):
        if not flag or (at and drives[at] != drives[at - 1]):
            number += 1
        if flag:
            found[number].append(at)
    yield from found.values()
