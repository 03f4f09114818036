from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from workbench.core import digest
from workbench.core.errors import ServiceError
from workbench.data.drawing import class_colours
from workbench.widgets import FrameBrowser
from workbench.widgets.frames import DrawnBox, ShownFrame, draw_frame


@pytest.fixture
def frames(tmp_path: Path) -> list[ShownFrame]:
    made = []
    for number in range(20):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (120, 80), (number * 10, 40, 40)).save(path)
        made.append(
            ShownFrame(
                frame=digest.of_file(path),
                image=path,
                drive=f"d{number % 3}",
                light="night" if number % 2 else "day",
                weather="rain" if number < 5 else "clear",
                arm="random" if number >= 18 else "mined",
                rank=number + 1,
                reasons=(f"reason <{number}>", "a second one", "a third one"),
                boxes=(DrawnBox("cyclist" if number == 7 else "car", (10, 10, 40, 30), 0.7),),
            )
        )
    return made


def test_pages_of_the_grid(frames: list[ShownFrame]) -> None:
    browser = FrameBrowser(frames)
    assert browser.count.value == "Frames 1 to 8 of 20 (20 in total)"
    browser.previous.click()
    assert "1 to 8" in browser.count.value
    browser.next.click()
    browser.next.click()
    browser.next.click()
    assert browser.count.value == "Frames 17 to 20 of 20 (20 in total)"
    assert len(browser.stage.children[0].children) == 4


def test_filters_join(frames: list[ShownFrame]) -> None:
    browser = FrameBrowser(frames)
    browser.filters["light"].value = "night"
    assert len(browser.matching) == 10
    browser.filters["weather"].value = "rain"
    assert [one.rank for one in browser.matching] == [2, 4]
    browser.filters["class"].value = "cyclist"
    assert browser.matching == []
    assert browser.count.value == "None of 20 frames matches the filters."
    assert browser.tag_button.disabled
    browser.filters["weather"].value = "all"
    assert [one.rank for one in browser.matching] == [8]
    assert not browser.tag_button.disabled


def test_the_score_slider_hides_boxes_and_labels_stay(frames: list[ShownFrame]) -> None:
    frames[0] = replace(frames[0], boxes=(DrawnBox("truck", (1, 1, 9, 9)),))  # a label
    frames[1] = replace(frames[1], boxes=(DrawnBox("bus", (1, 1, 9, 9), 0.9), *frames[1].boxes))
    browser = FrameBrowser(frames)
    browser.score.value = 0.8
    assert [len(one.boxes) for one in browser.matching[:3]] == [1, 1, 0]
    assert len(browser.matching) == 20, "a frame without a box is still to be looked at"
    browser.filters["class"].value = "car"
    assert browser.matching == []
    browser.score.value = 0.0
    assert len(browser.matching) == 18
    labels = [replace(one, boxes=(DrawnBox("car", (1, 1, 9, 9)),)) for one in frames]
    assert FrameBrowser(labels).score.disabled and not browser.score.disabled


def test_opening_a_frame_shows_every_reason(frames: list[ShownFrame]) -> None:
    browser = FrameBrowser(frames)
    cell = browser.stage.children[0].children[3]
    assert "a third one" not in cell.children[2].value
    cell.children[1].click()
    assert browser.mode.value == "one frame"
    assert browser.in_view == (frames[3].frame,)
    assert "reason &lt;3&gt;" in browser.stage.children[0].children[2].value
    assert "a third one" in browser.stage.children[0].children[2].value
    browser.next.click()
    assert browser.in_view == (frames[4].frame,)
    browser.mode.value = "grid"
    assert len(browser.in_view) == 20


def test_buttons_act_on_what_is_in_view(frames: list[ShownFrame]) -> None:
    asked: list[tuple[str, ...]] = []

    def tag(chosen: tuple[str, ...]) -> str:
        asked.append(chosen)
        return f"{len(chosen)} tagged"

    browser = FrameBrowser(frames, on_tag=tag)
    assert browser.send_button.layout.display == "none"
    browser.filters["arm"].value = "random"
    browser.tag_button.click()
    assert asked == [(frames[18].frame, frames[19].frame)]
    assert browser.status.value == "<b>2 tagged</b>"


def test_an_error_is_shown_with_its_hint(frames: list[ShownFrame]) -> None:
    def send(_: tuple[str, ...]) -> None:
        raise ServiceError("Label Studio is away", hint="Run `workbench up`")

    browser = FrameBrowser(frames[:1], on_send=send)
    browser.send_button.click()
    assert "Label Studio is away" in browser.status.value
    assert "workbench up" in browser.status.value


def test_several_frames_are_sent_at_the_second_press_only(frames: list[ShownFrame]) -> None:
    sent: list[tuple[str, ...]] = []
    browser = FrameBrowser(frames, on_send=sent.append)
    browser.send_button.click()
    assert "Send 20 frames to labelers?" in browser.status.value and not sent
    browser.filters["light"].value = "night"
    browser.send_button.click()
    assert "Send 10 frames to labelers?" in browser.status.value and not sent
    browser.send_button.click()
    assert [len(one) for one in sent] == [10]


def test_zoom_and_back(frames: list[ShownFrame]) -> None:
    browser = FrameBrowser(frames)
    browser.next.click()
    browser.zoom.value = True
    assert browser.in_view == (frames[8].frame,)
    assert browser.stage.children[0].children[0].layout.overflow == "auto"
    browser.back.click()
    assert browser.mode.value == "grid" and not browser.zoom.value
    assert "9 to 16" in browser.count.value


def test_the_legend_has_every_class(frames: list[ShownFrame]) -> None:
    legend = FrameBrowser(frames).legend.value
    colours = class_colours(("car", "cyclist"))
    assert all(colours[cls] in legend and cls in legend for cls in colours)


def test_boxes_are_drawn_where_they_are(frames: list[ShownFrame]) -> None:
    plain = Image.open(frames[0].image)
    drawn = Image.open(io.BytesIO(draw_frame(frames[0], 240)))
    assert drawn.size == (240, 160)
    background = plain.getpixel((60, 60))
    assert drawn.getpixel((20, 40)) != background  # the left edge, twice as large
    assert drawn.getpixel((50, 40)) == background  # inside
    assert drawn.getpixel((200, 140)) == background


def test_an_unreadable_image_is_a_placeholder(frames: list[ShownFrame]) -> None:
    frames[0].image.write_bytes(b"nothing")
    assert Image.open(io.BytesIO(draw_frame(frames[0], 160))).size == (160, 90)


def test_no_frames_at_all() -> None:
    assert FrameBrowser([]).count.value == "None of 0 frames matches the filters."
