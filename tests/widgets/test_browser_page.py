"""The frame browser on a page of a headless Chromium, by keyboard and mouse.

The kernel is this process, so nothing else has to start; JupyterLab's part is in `test_keyboard`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from docs import screenshots
from tests.widgets.conftest import drawn_frames
from workbench.widgets import BrowserExtras, FrameBrowser
from workbench.widgets.browser import AskingAction, SliceChange
from workbench.widgets.frames import ShownFrame

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(screenshots.chromium() is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def shown_frames(tmp_path_factory: pytest.TempPathFactory) -> list[ShownFrame]:
    return drawn_frames(tmp_path_factory.mktemp("frames"), 60)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with screenshots.browser(1280, 720) as page:
        yield page.context.browser


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def browser(shown_frames: list[ShownFrame], calls: list[Any]) -> FrameBrowser:
    grid = np.array([(n % 10, n // 10) for n in range(60)], np.float32)
    return FrameBrowser(
        shown_frames,
        on_tag=lambda some: calls.append(some) or f"{len(some)} tagged",
        actions={
            "Keep as case": AskingAction(
                lambda some, **answers: calls.append((some, answers)) or "kept",
                {"why": "What happened"},
            )
        },
        extras=BrowserExtras(
            points=grid,
            search=lambda frame, box: calls.append((frame, box)) or shown_frames[10:13],
            comparison=(SliceChange("light=night", 30, 0.9, 0.5, -0.4, -0.5, -0.3),),
        ),
    )


@pytest.fixture
def page(chromium: Any, browser: FrameBrowser) -> Iterator[Any]:
    opened = chromium.new_page(viewport={"width": 1280, "height": 720})
    failures: list[Any] = []
    opened.on("pageerror", lambda error: failures.append(str(error)))
    screenshots.show_widget(opened, browser)
    opened.set_default_timeout(6000)
    opened.locator(".wb-card").first.wait_for()
    opened.locator(".wb-root").focus()
    yield opened
    opened.close()
    assert not failures


def count(page: Any) -> str:
    return str(page.locator(".wb-count").inner_text())


def arrived(page: Any, holds: Callable[[], bool]) -> bool:
    """Whether what the page said has reached the kernel, within two seconds."""
    for _ in range(100):
        if holds():
            return True
        page.wait_for_timeout(20)
    return False


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_marks_by_keyboard_are_counted_confirmed_and_arrive(
    page: Any, browser: FrameBrowser, calls: list[Any]
) -> None:
    press(page, "t")
    assert not calls and page.locator(".wb-ask").count() == 0, "nothing is marked"
    press(page, "Space", "ArrowRight", "Space", "ArrowDown", "Space")
    page.get_by_text("3 frames marked").wait_for()
    columns = page.evaluate("Math.round(1200 / document.querySelector('.wb-card').offsetWidth)")
    wanted = [browser.frames[at].frame for at in (0, 1, 1 + columns)]
    assert arrived(page, lambda: list(browser.marked) == wanted)
    press(page, "t")
    page.get_by_text("Tag in FiftyOne: 3 marked frames?").wait_for()
    assert not calls, "asked first"
    press(page, "Escape")
    assert page.locator(".wb-ask").count() == 0
    press(page, "t", "t")
    page.get_by_text("3 tagged").wait_for()
    assert calls == [tuple(wanted)]
    press(page, "c")
    page.get_by_text("No frame marked").wait_for()
    assert arrived(page, lambda: browser.marked == ())
    browser.mark([browser.frames[9].frame])
    page.get_by_text("1 frame marked").wait_for()


def test_an_action_that_asks_is_done_with_the_answers(
    page: Any, browser: FrameBrowser, calls: list[Any]
) -> None:
    press(page, "Space")
    page.get_by_role("button", name="Keep as case").click()
    field = page.get_by_role("textbox", name="What happened")
    press(page, "Enter")
    assert not calls, "nothing was answered"
    field.press_sequentially("a cat, twice")  # its letters are no keys of the browser
    press(page, "Enter")
    page.get_by_text("kept", exact=True).wait_for()
    answers = {"why": "a cat, twice", "model": "first", "score": 0.3}
    assert calls == [((browser.frames[0].frame,), answers)]
    page.get_by_text("1 frame marked").wait_for()
    press(page, "c")
    page.get_by_text("No frame marked").wait_for()


def test_filters_join_and_empty_says_what_to_do(page: Any) -> None:
    page.get_by_label("slice").select_option("light=night")
    assert count(page) == "30 of 60 frames"
    page.get_by_label("cls").select_option("cyclist")
    assert count(page) == "1 of 60 frames"
    page.get_by_label("origin").select_option("human")
    page.get_by_text("No frame matches the filters").wait_for()
    page.locator(".wb-root").focus()
    press(page, "Escape")
    assert count(page) == "60 frames"


def test_misses_follow_the_score_and_the_model(page: Any) -> None:
    page.get_by_label("kind").select_option("missed")
    assert count(page) == "0 of 60 frames", "the first model finds all"
    page.get_by_label("kind").select_option("wrong")
    assert count(page) == "1 of 60 frames"
    page.get_by_label("model").select_option("second")
    page.get_by_label("kind").select_option("missed")
    assert count(page) == "30 of 60 frames"
    page.locator(".wb-root").focus()
    for _ in range(4):
        press(page, "[")  # to 0.1, where the second finds the others too
    page.get_by_text("0 of 60 frames", exact=True).wait_for()


def test_two_models_are_compared_slice_by_slice(page: Any) -> None:
    press(page, "v")
    page.get_by_title("light=night: recall").click()
    assert count(page) == "30 of 60 frames"
    assert page.get_by_label("model").input_value() == "compare"
    assert page.locator(".wb-badge").first.inner_text() == "\N{MINUS SIGN}1"
    page.locator(".wb-card").first.click()
    page.get_by_text("only the first").last.wait_for()


def test_the_large_view_zooms_pans_and_steps(page: Any) -> None:
    press(page, "ArrowRight", "Enter")
    title = page.locator(".wb-title")
    assert title.inner_text().startswith("d1 · 0")
    image = page.locator(".wb-image")
    before = image.screenshot()
    press(page, "n", "z")
    assert image.screenshot() != before
    assert page.locator(".wb-chosen").count() == 1
    press(page, "Escape")
    press(page, ".")
    assert title.inner_text().startswith("d1 · 1"), "the next in the drive"
    press(page, "ArrowRight")
    assert title.inner_text().startswith("d2 · 1"), "the next in the grid"
    page.get_by_text("1 gap").wait_for()
    press(page, "Space")
    page.get_by_text("✓ marked").wait_for()
    press(page, "Escape")
    assert page.locator(".wb-grid").is_visible()


def test_a_box_that_is_drawn_is_searched_for(
    page: Any, browser: FrameBrowser, calls: list[Any]
) -> None:
    press(page, "Enter", "b")
    spot = page.locator(".wb-image").bounding_box()
    x, y = spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2
    page.mouse.move(x - 60, y - 40)
    page.mouse.down()
    page.mouse.move(x + 60, y + 40, steps=4)
    page.mouse.up()
    page.locator(".wb-chip", has_text="like what is in the box · 3").wait_for()
    frame, box = calls[0]
    assert frame == browser.frames[0].frame
    x1, y1, x2, y2 = box.xyxy
    assert (x1 + x2) / 2 == pytest.approx(60, abs=2) and (y1 + y2) / 2 == pytest.approx(40, abs=2)
    assert (x2 - x1) / (y2 - y1) == pytest.approx(1.5, abs=0.1)
    assert count(page) == "3 of 60 frames"
    assert arrived(page, lambda: len(browser.picked) == 3)
    press(page, "Escape")
    assert count(page) == "60 frames"
    assert arrived(page, lambda: browser.picked == ())


def test_a_lasso_picks_frames_on_the_page_and_in_the_kernel(
    page: Any, browser: FrameBrowser
) -> None:
    press(page, "m")
    spot = page.locator(".wb-map").bounding_box()
    side = min(spot["width"], spot["height"]) - 24
    left, top = (spot["x"] + (spot["width"] - side) / 2, spot["y"] + (spot["height"] - side) / 2)
    # Points lie on a grid of ten columns; the lasso takes the three at the left of each row.
    corners = [(-0.02, -0.02), (0.27, -0.02), (0.27, 1.02), (-0.02, 1.02)]
    page.mouse.move(left + corners[-1][0] * side, top + corners[-1][1] * side)
    page.mouse.down()
    for x, y in corners:
        page.mouse.move(left + x * side, top + y * side, steps=3)
    page.mouse.up()
    page.locator(".wb-chip", has_text="lasso · 18").wait_for()
    assert arrived(page, lambda: len(browser.picked) == 18)
    assert {browser._rows[frame] % 10 for frame in browser.picked} == {0, 1, 2}
    page.locator(".wb-root").focus()
    press(page, "a")
    page.get_by_text("18 frames marked").wait_for()
    assert arrived(page, lambda: set(browser.marked) == set(browser.picked))


def test_only_cards_on_the_screen_exist(page: Any) -> None:
    assert page.locator(".wb-card").count() < 40
    press(page, "End")
    page.locator(".wb-focus", has_text="d2 · 19").wait_for()
    assert page.locator(".wb-card:visible").count() < 40


@pytest.mark.parametrize("dark", [False, True])
def test_words_have_contrast_in_both_themes(
    chromium: Any, shown_frames: list[ShownFrame], dark: bool
) -> None:
    """WCAG 2.2: at least 4.5 to 1 for text."""
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    screenshots.show_widget(page, FrameBrowser(shown_frames), dark=dark)
    page.locator(".wb-card").first.wait_for()
    ratios = page.evaluate(
        """() => {
          const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((one) => {
              const share = one / 255;
              return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const under = (element) => {
            for (let at = element; at; at = at.parentElement) {
              const colour = getComputedStyle(at).backgroundColor;
              if (!/, 0\\)$|transparent/.test(colour)) return colour;
            }
            return "rgb(255, 255, 255)";
          };
          return [...document.querySelectorAll(
            ".wb-help, .wb-count, .wb-name, .wb-badge, .wb-legend span, .wb-toggle, select"
          )].filter((one) => one.offsetParent).map((one) => {
            const [a, b] = [light(getComputedStyle(one).color), light(under(one))];
            return [one.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
          });
        }"""
    )
    page.close()
    assert len(ratios) > 20
    assert min(ratios, key=lambda one: one[1])[1] >= 4.5
