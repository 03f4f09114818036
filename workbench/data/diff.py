"""Compare two dataset versions.

Frames with the same bytes are the same frame. Within a frame, two labels are the same object if
their boxes have an IoU of 0.5 or more: a box that was moved or got another class is one change, not
a removal and an addition. Matching is greedy: identical labels first, then labels of equal class,
then by IoU.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.data.slices import frame_conditions
from workbench.records.base import Digest
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, Label

__all__ = ["DatasetDiff", "diff_datasets"]

_SAME_OBJECT_IOU = 0.5
_POSITION_TOLERANCE_PX = 1e-6  # rounding of a conversion to percentages and back

_PROVENANCE = ("origin", "annotator", "source", "labeled_at", "score", "edit")
_ATTRIBUTES = ("occluded", "truncated", "ignore", "track", "attributes")


@dataclass(frozen=True)
class LabelChange:
    """A label that changed; ``kinds`` are any of moved, class, attributes, provenance."""

    old: Label
    new: Label
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class FrameChange:
    """A frame that changed; ``fields`` are the names of the fields that differ."""

    old: Frame
    new: Frame
    fields: tuple[str, ...]


@short_repr
@dataclass(frozen=True)
class DatasetDiff:
    """Differences between two versions; ``by_class`` and ``by_slice`` count changed labels."""

    frames_added: tuple[Frame, ...]
    frames_removed: tuple[Frame, ...]
    frames_changed: tuple[FrameChange, ...]
    labels_added: tuple[Label, ...]
    labels_removed: tuple[Label, ...]
    labels_changed: tuple[LabelChange, ...]
    by_class: dict[str, dict[str, int]]
    by_slice: dict[str, dict[str, int]]

    @property
    def empty(self) -> bool:
        """Whether the versions are equal."""
        return not (
            self.frames_added
            or self.frames_removed
            or self.frames_changed
            or self.labels_added
            or self.labels_removed
            or self.labels_changed
        )

    def counts(self) -> Json:
        """Numbers of changes, as ``--json`` prints them."""
        kinds = Counter(kind for change in self.labels_changed for kind in change.kinds)
        fields = Counter(name for change in self.frames_changed for name in change.fields)
        return {
            "frames": {
                "added": len(self.frames_added),
                "removed": len(self.frames_removed),
                "changed": len(self.frames_changed),
                "changed_fields": dict(sorted(fields.items())),
            },
            "labels": {
                "added": len(self.labels_added),
                "removed": len(self.labels_removed),
                "changed": len(self.labels_changed),
                "changed_kinds": dict(sorted(kinds.items())),
            },
            "by_class": self.by_class,
            "by_slice": self.by_slice,
        }


def diff_datasets(old: Dataset, new: Dataset) -> DatasetDiff:
    """Compare two dataset versions, related or not."""
    before = {frame.id: frame for frame in old.frames}
    after = {frame.id: frame for frame in new.frames}
    added, removed, changed = [], [], []
    for frame_id in sorted(before.keys() | after.keys()):
        pairs = _match_labels(
            old.labels_by_frame.get(frame_id, ()), new.labels_by_frame.get(frame_id, ())
        )
        added.extend(pairs[0])
        removed.extend(pairs[1])
        changed.extend(pairs[2])
    moved = [_frame_change(before[i], after[i]) for i in sorted(before.keys() & after.keys())]
    frames = {**before, **after}
    by_class, by_slice = _count_changes(added, removed, changed, frames)
    return DatasetDiff(
        frames_added=tuple(frame for i, frame in after.items() if i not in before),
        frames_removed=tuple(frame for i, frame in before.items() if i not in after),
        frames_changed=tuple(change for change in moved if change.fields),
        labels_added=tuple(added),
        labels_removed=tuple(removed),
        labels_changed=tuple(changed),
        by_class=by_class,
        by_slice=by_slice,
    )


def _match_labels(
    old: tuple[Label, ...], new: tuple[Label, ...]
) -> tuple[list[Label], list[Label], list[LabelChange]]:
    """Labels added, removed and changed on one frame."""
    if old == new:
        return [], [], []
    left = dict(enumerate(old))
    right = dict(enumerate(new))
    candidates = []
    for i, before in left.items():
        for j, after in right.items():
            overlap = _box_iou(before.box, after.box)
            if overlap >= _SAME_OBJECT_IOU:
                candidates.append((before != after, before.cls != after.cls, -overlap, i, j))
    changed = []
    for *_, i, j in sorted(candidates):
        if i in left and j in right:
            before, after = left.pop(i), right.pop(j)
            kinds = _change_kinds(before, after)
            if kinds:
                changed.append(LabelChange(before, after, kinds))
    return list(right.values()), list(left.values()), changed


def _change_kinds(old: Label, new: Label) -> tuple[str, ...]:
    tests = {
        "moved": _has_moved(old, new),
        "class": old.cls != new.cls,
        "attributes": any(getattr(old, name) != getattr(new, name) for name in _ATTRIBUTES),
        "provenance": any(getattr(old, name) != getattr(new, name) for name in _PROVENANCE),
    }
    return tuple(kind for kind, differs in tests.items() if differs)


def _has_moved(old: Label, new: Label) -> bool:
    edges = zip(old.box.xyxy, new.box.xyxy, strict=True)
    reshaped = (old.turned, old.polygon) != (new.turned, new.polygon)
    return reshaped or any(abs(a - b) > _POSITION_TOLERANCE_PX for a, b in edges)


def _frame_change(old: Frame, new: Frame) -> FrameChange:
    names = Frame.model_fields
    fields = tuple(name for name in names if getattr(old, name) != getattr(new, name))
    return FrameChange(old, new, fields)


def _count_changes(
    added: list[Label],
    removed: list[Label],
    changed: list[LabelChange],
    frames: dict[Digest, Frame],
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """Counts by class and by condition; of a change, the new label counts."""
    by_class: dict[str, Counter[str]] = {}
    by_slice: dict[str, Counter[str]] = {}
    events = [("added", label) for label in added]
    events += [("removed", label) for label in removed]
    events += [("changed", change.new) for change in changed]
    for event, label in events:
        by_class.setdefault(label.cls, Counter())[event] += 1
        for name in frame_conditions(frames[label.frame]):
            by_slice.setdefault(name, Counter())[event] += 1
    return _as_plain_counts(by_class), _as_plain_counts(by_slice)


def _as_plain_counts(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    events = ("added", "removed", "changed")
    return {name: {event: counts[name][event] for event in events} for name in sorted(counts)}


def _box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    wide = min(first.x + first.w, second.x + second.w) - max(first.x, second.x)
    high = min(first.y + first.h, second.y + second.h) - max(first.y, second.y)
    if wide <= 0 or high <= 0:
        return 0.0
    shared = wide * high
    return shared / (first.w * first.h + second.w * second.h - shared)
