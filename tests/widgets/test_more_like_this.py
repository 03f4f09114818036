from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from workbench.core.errors import ParameterError
from workbench.widgets import MoreLikeThis
from workbench.widgets.frames import DrawnBox, ShownFrame


@pytest.fixture
def frames(tmp_path: Path) -> list[ShownFrame]:
    """Two drives of three frames; the last frame has no boxes, the others nine."""
    path = tmp_path / "frame.png"
    Image.new("RGB", (120, 80), (40, 40, 40)).save(path)
    nine = tuple(DrawnBox("car", (n, 10, n + 20, 30), 0.9 - 0.1 * n) for n in range(9))
    return [
        ShownFrame(
            frame=f"{number:064x}",
            image=path,
            drive=f"d{number // 3}",
            light="day",
            weather="clear",
            boxes=() if number == 5 else nine,
        )
        for number in range(6)
    ]


def test_a_box_is_searched_for_and_the_matches_are_kept(frames: list[ShownFrame]) -> None:
    asked: list[tuple[str, DrawnBox | None]] = []
    kept: list[tuple[str, ...]] = []

    def search(frame: str, box: DrawnBox | None) -> list[ShownFrame]:
        asked.append((frame, box))
        return frames[:2]

    widget = MoreLikeThis(frames, search, on_keep=lambda some: kept.append(some) or "kept")
    widget.pick(frames[4].frame, box=2)
    assert asked[-1] == (frames[4].frame, frames[4].boxes[2])
    assert widget.status.value == "the 2 nearest to this car"
    widget.keep_button.click()
    assert kept == [(frames[4].frame, frames[0].frame, frames[1].frame)]
    assert widget.status.value == "kept"


def test_a_frame_without_boxes_can_be_searched_for_as_a_whole(frames: list[ShownFrame]) -> None:
    widget = MoreLikeThis(frames, lambda *_: [])
    widget.pick(frames[5].frame)
    assert [value for _, value in widget.box.options] == [-1]
    assert widget.keep_button.disabled
    assert widget.status.value == "the 0 nearest to this frame"


def test_an_unknown_frame_or_box_is_reported(frames: list[ShownFrame]) -> None:
    widget = MoreLikeThis(frames, lambda *_: [])
    with pytest.raises(ParameterError, match="unknown frame id"):
        widget.pick("f" * 64)
    with pytest.raises(ParameterError, match=r"has 0 boxes.*Omit the box"):
        widget.pick(frames[5].frame, box=0)


def test_answers_are_sent_and_confirmed_frames_are_kept(frames: list[ShownFrame]) -> None:
    sent: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    kept: list[tuple[str, ...]] = []

    def refine(yes: tuple[str, ...], no: tuple[str, ...]) -> list[ShownFrame]:
        sent.append((yes, no))
        return frames[2:3]

    widget = MoreLikeThis(
        frames, lambda *_: frames[:2], refine=refine, on_keep=lambda some: kept.append(some) or "ok"
    )
    widget.pick(frames[4].frame, box=2)
    widget.refit_button.click()
    assert not sent
    assert "No answers yet" in widget.status.value
    widget.answers[frames[0].frame].value = "yes"
    widget.answers[frames[1].frame].value = "no"
    widget.refit_button.click()
    assert sent == [((frames[0].frame,), (frames[1].frame,))]
    assert widget.matches == frames[2:3]
    assert "1 frame confirmed so far" in widget.status.value
    widget.keep_button.click()
    assert kept == [(frames[4].frame, frames[0].frame, frames[2].frame)]
    widget.pick(frames[3].frame)
    assert widget.confirmed == [], "another search begins anew"
