from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.data.test_roles import fleet
from workbench.data.diff import diff_datasets
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Label, Origin, Role


def _edited(dataset: Dataset, number: int, **changes: Any) -> Dataset:
    labels = list(dataset.labels)
    labels[number] = labels[number].model_copy(update=changes)
    return replace(dataset, labels=tuple(labels))


def test_equal_datasets_do_not_differ() -> None:
    found = diff_datasets(fleet(2, 3), fleet(2, 3))
    assert found.empty
    assert found.by_class == {}


def test_a_moved_reclassified_or_edited_box_is_one_change() -> None:
    old = fleet(1, 4)
    new = _edited(old, 0, box=Box(x=2, y=1, w=5, h=5))
    new = _edited(new, 1, cls="truck")
    new = _edited(new, 2, occluded=0.5, origin=Origin.HUMAN_EDITED)
    found = diff_datasets(old, new)
    assert [change.kinds for change in sorted(found.labels_changed, key=lambda c: c.kinds)] == [
        ("attributes", "provenance"),
        ("class",),
        ("moved",),
    ]
    assert not found.labels_added and not found.labels_removed
    assert found.by_class == {
        "car": {"added": 0, "removed": 0, "changed": 2},
        "truck": {"added": 0, "removed": 0, "changed": 1},
    }
    assert found.by_slice["light=night"] == {"added": 0, "removed": 0, "changed": 3}


def test_a_box_without_overlap_is_another_object() -> None:
    old = fleet(1, 1)
    found = diff_datasets(old, _edited(old, 0, box=Box(x=40, y=30, w=5, h=5)))
    assert (len(found.labels_added), len(found.labels_removed), found.labels_changed) == (1, 1, ())


def test_overlapping_objects_are_matched_one_to_one() -> None:
    old = fleet(1, 1)
    frame = old.frames[0].id
    cyclist = Label(
        frame=frame, cls="cyclist", box=Box(x=1, y=1, w=5, h=4.5), origin=Origin.IMPORTED
    )
    both = replace(old, labels=(*old.labels, cyclist))
    swapped = replace(old, labels=(cyclist, *old.labels))
    assert diff_datasets(both, swapped).empty
    found = diff_datasets(both, replace(old, labels=(cyclist,)))
    assert found.labels_removed == old.labels and not found.labels_changed


def test_frames_added_removed_and_changed() -> None:
    old = fleet(2, 2)
    kept = old.where(lambda frame: frame.drive == "d00")
    role = tuple(frame.model_copy(update={"role": Role.VAL}) for frame in kept.frames)
    found = diff_datasets(old, replace(kept, frames=role))
    assert len(found.frames_removed) == 2 and not found.frames_added
    assert [change.fields for change in found.frames_changed] == [("role",), ("role",)]
    assert len(found.labels_removed) == 2
    assert len(diff_datasets(kept, old).frames_added) == 2
