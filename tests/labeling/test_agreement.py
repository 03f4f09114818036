"""Agreement of two labelers, worked out by hand."""

from __future__ import annotations

from workbench.labeling.agreement import measure, preferred
from workbench.records.frames import Box, Label, Origin

FRAME = "a" * 64


def label(x: float, cls: str = "car", *, ignore: bool = False) -> Label:
    box = Box(x=x, y=0, w=10, h=10)
    return Label(frame=FRAME, cls=cls, box=box, origin=Origin.HUMAN, ignore=ignore)


def test_matched_missed_and_named_otherwise() -> None:
    ada = [label(0), label(100), label(200)]
    bob = [label(2), label(100, "bus"), label(400, ignore=True)]
    result = measure({FRAME: {"ada": ada, "bob": bob}, "b" * 64: {"ada": ada}})
    assert result["frames"] == 1
    assert result["boxes"] == 5
    # 8/12 of the first pair and all of the second overlap; one of five boxes has no match.
    assert result["mean_iou"] == round((8 / 12 + 1) / 2, 6)
    assert result["missed_rate"] == 0.2
    assert result["class_agreement"] == 0.5


def test_nothing_to_compare_has_no_figures() -> None:
    result = measure({FRAME: {"ada": [label(0)]}})
    assert (result["frames"], result["mean_iou"], result["missed_rate"]) == (0, None, None)
    empty = measure({FRAME: {"ada": [], "bob": []}})
    assert (empty["frames"], empty["mean_iou"], empty["missed_rate"]) == (1, None, None)


def test_whose_boxes_are_taken_is_settled_and_favours_nobody() -> None:
    frames = [f"{number:064x}" for number in range(400)]
    taken = [preferred(frame, ["ada", "bob"]) for frame in frames]
    assert taken == [preferred(frame, ["bob", "ada"]) for frame in frames]
    assert 150 < taken.count("ada") < 250
