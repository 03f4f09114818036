"""The frame browser without a page: what it sends, and what reaches the kernel."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.core.errors import ParameterError, ServiceError
from workbench.core.workspace import Workspace
from workbench.widgets import BrowserExtras, FrameBrowser
from workbench.widgets.browser import ExplainedMiss
from workbench.widgets.frames import ShownFrame, pack_frames


class Page:
    """Stands for the page: keeps what the kernel sent."""

    def __init__(self, browser: FrameBrowser) -> None:
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        self.browser = browser
        browser.send = lambda content, buffers=(): self.sent.append((content, list(buffers)))

    def ask(self, **message: Any) -> tuple[dict[str, Any], list[bytes]]:
        self.browser._handle_custom_msg(message, [])
        return self.sent[-1]


def test_frames_travel_as_arrays(frames: list[ShownFrame]) -> None:
    header, arrays = pack_frames(frames)
    assert header["n"] == 20 and header["models"] == ["first", "second"]
    assert header["classes"] == ["car", "cyclist"] and header["origins"] == ["human", "imported"]
    assert arrays["ids"].tobytes()[7 * 32 : 8 * 32].hex() == frames[7].frame
    first, last = arrays["offsets"][3], arrays["offsets"][4]
    assert last - first == 4
    codes, boxes = arrays["codes"][first:last], arrays["boxes"][first:last]
    assert codes[:, 1].tolist() == [0xFFFF, 0, 0, 1], "labels first, then by falling score"
    assert boxes[1, 4] == np.float32(0.9) and np.isnan(boxes[0, 4])
    assert boxes[0, 5] == np.float32(0.4) and np.isnan(boxes[0, 6])
    assert codes[:, 2].tolist()[0] == 0
    night = header["slice_names"].index("light=night")
    assert [bool(bits & (1 << night)) for bits in arrays["slices"][:2]] == [False, True]
    drives = next(one for one in header["columns"] if one["name"] == "drive")
    assert drives["values"][arrays["drive"][4]] == "d1"


def test_no_frames_at_all() -> None:
    content, _ = Page(FrameBrowser([])).ask(type="ready")
    assert content["n"] == 0 and content["classes"] == []


def test_thumbnails_are_made_once_and_kept(frames: list[ShownFrame], workspace: Workspace) -> None:
    page = Page(FrameBrowser(frames, workspace=workspace))
    content, data = page.ask(type="images", kind="thumbnail", frames=[4, 5])
    assert content["frames"] == [4, 5] and content["errors"] == ["", ""]
    with Image.open(io.BytesIO(data[0])) as image:
        assert image.size == (320, 213) and image.format == "JPEG"
    frames[4].image.unlink()
    again, kept = Page(FrameBrowser(frames, workspace=workspace)).ask(
        type="images", kind="thumbnail", frames=[4]
    )
    assert again["errors"] == [""] and kept == data[:1]
    _, whole = page.ask(type="images", kind="image", frames=[5])
    assert whole == [frames[5].image.read_bytes()], "the large view gets the file itself"


def test_a_changed_image_is_not_shown(frames: list[ShownFrame]) -> None:
    frames[0].image.write_bytes(b"nothing")
    for kind in ("thumbnail", "image"):
        content, data = Page(FrameBrowser(frames)).ask(type="images", kind=kind, frames=[0, 1])
        assert "is not the one that was ingested" in content["errors"][0] or kind == "image"
        assert data[0] == b""


def test_marks_of_the_page_arrive(frames: list[ShownFrame]) -> None:
    browser = FrameBrowser(frames)
    browser._marks = np.array([7, 2], "<u4").tobytes()
    assert browser.marked == (frames[7].frame, frames[2].frame)
    browser.mark([frames[1].frame])
    assert np.frombuffer(browser._marks, "<u4").tolist() == [1]
    browser.show_only([frames[9].frame, frames[3].frame], "mine")
    assert browser.picked == (frames[9].frame, frames[3].frame)
    with pytest.raises(ParameterError, match="unknown frame id"):
        browser.mark(["f" * 64])


def test_actions_get_the_marked_frames_and_tell_their_outcome(frames: list[ShownFrame]) -> None:
    asked: list[tuple[str, ...]] = []

    def send(_: tuple[str, ...]) -> None:
        raise ServiceError("Label Studio is away", hint="Run `workbench up`")

    browser = FrameBrowser(
        frames, on_tag=lambda some: asked.append(some) or f"{len(some)} tagged", on_send=send
    )
    page = Page(browser)
    content, _ = page.ask(type="act", action="Tag in FiftyOne", frames=[18, 19])
    assert content["text"] == "2 tagged" and not content["error"]
    assert asked == [(frames[18].frame, frames[19].frame)]
    content, _ = page.ask(type="act", action="Send to labelers", frames=[0])
    assert content["error"] and content["text"] == "Label Studio is away"
    assert content["hint"] == "Run `workbench up`"
    content, _ = page.ask(type="act", action="Tag in FiftyOne", frames=[])
    assert content["text"] == "no frame is marked" and len(asked) == 1
    with pytest.raises(ParameterError, match="no frame is marked"):
        browser.act("Tag in FiftyOne")
    browser.mark([frames[5].frame])
    assert browser.act("Tag in FiftyOne") == "1 tagged"


def test_searches_and_explanations_are_answered(frames: list[ShownFrame]) -> None:
    searched: list[Any] = []
    extras = BrowserExtras(
        search=lambda frame, box: searched.append((frame, box)) or frames[4:6],
        refine=lambda yes, no: frames[6:7] if (yes, no) == ((frames[4].frame,), ()) else [],
        explain=lambda frame, model, score: [
            ExplainedMiss("car", (10, 10, 40, 30), f"{model} at {score}")
        ],
    )
    page = Page(FrameBrowser(frames, extras=extras))
    content, _ = page.ask(type="like", frame=2, box=[1, 2, 30, 40], cls="")
    assert content["frames"] == [4, 5] and searched[0][1].xyxy == (1, 2, 30, 40)
    content, _ = page.ask(type="refine", yes=[4], no=[])
    assert content["frames"] == [6] and content["title"] == "searched again"
    content, _ = page.ask(type="why", frame=1, model=1, score=0.3)
    assert content["misses"] == {0: "second at 0.3"}


def test_a_selection_needs_marks_and_a_dataset(frames: list[ShownFrame]) -> None:
    with pytest.raises(ParameterError, match="cannot keep selections"):
        FrameBrowser(frames).selection()
    browser = FrameBrowser(frames, extras=BrowserExtras(select=lambda some, why: (some, why)))
    with pytest.raises(ParameterError, match="no frame is marked"):
        browser.selection()
    browser.mark([frames[3].frame])
    assert browser.selection("odd") == ((frames[3].frame,), "odd")
    with pytest.raises(ParameterError, match="points"):
        FrameBrowser(frames, extras=BrowserExtras(points=np.zeros((3, 2), np.float32)))
