"""A browser of chosen frames: a grid of thumbnails or one frame, filters, the reason for each.

What "Tag" and "Send" do is handed in, so that this file knows neither FiftyOne nor Label Studio.
Everything works from code as well: ``browser.tag_button.click()``.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from workbench.errors import WorkbenchError
from workbench.widgets.pictured import PicturedFrame, draw

Action = Callable[[tuple[str, ...]], object]
"""Takes frame digests, does something, and returns what to tell the person."""

ALL = "all"
_COLUMNS, _PAGE = 4, 8
_THUMBNAIL, _WHOLE = 240, 880


class FrameBrowser(widgets.VBox):  # type: ignore[misc]
    """Frames to look at, filter, tag and send.

    Args:
        frames: In the order to show them.
        on_tag: Called with the frames in view by "Tag in FiftyOne"; without it, no button.
        on_send: The same for "Send to Label Studio".

    Attributes:
        filters: One dropdown for each of light, weather, class, arm and drive.
        matching: The frames that pass the filters.
    """

    def __init__(
        self,
        frames: Sequence[PicturedFrame],
        *,
        on_tag: Action | None = None,
        on_send: Action | None = None,
    ) -> None:
        self.frames = list(frames)
        self.matching = self.frames
        self._at = 0
        self._single = False
        self.filters = self._make_filters()
        self.previous = widgets.Button(icon="arrow-left", tooltip="Previous", layout=_slim())
        self.next = widgets.Button(icon="arrow-right", tooltip="Next", layout=_slim())
        self.mode = widgets.ToggleButtons(
            options=["grid", "one frame"], style={"button_width": "96px"}
        )
        self.tag_button = _button("Tag in FiftyOne", "tag", on_tag)
        self.send_button = _button("Send to Label Studio", "paper-plane", on_send)
        self.count = widgets.HTML()
        self.status = widgets.HTML()
        self.stage = widgets.Box()
        self._connect(on_tag, on_send)
        super().__init__(
            [
                widgets.HBox(list(self.filters.values()), layout=_wrap()),
                widgets.HBox(
                    [self.previous, self.next, self.mode, self.tag_button, self.send_button],
                    layout=_wrap(),
                ),
                self.count,
                self.stage,
                self.status,
            ]
        )
        self._show()

    @property
    def in_view(self) -> tuple[str, ...]:
        """What the buttons act on: the frame that is open, else all that pass the filters."""
        if self._single:
            return tuple(one.frame for one in self.matching[self._at : self._at + 1])
        return tuple(one.frame for one in self.matching)

    def look_at(self, frame: str) -> None:
        """Show one frame large."""
        self._at = [one.frame for one in self.matching].index(frame)
        self._single = True
        if self.mode.value == "one frame":
            self._show()
        else:
            self.mode.value = "one frame"

    def _make_filters(self) -> dict[str, Any]:
        values = {
            "light": {one.light for one in self.frames},
            "weather": {one.weather for one in self.frames},
            "class": {cls for one in self.frames for cls in one.classes},
            "arm": {one.arm for one in self.frames if one.arm},
            "drive": {one.drive for one in self.frames},
        }
        return {
            name: widgets.Dropdown(
                options=[ALL, *sorted(found)],
                description=name,
                layout=widgets.Layout(width="210px"),
                style={"description_width": "60px"},
            )
            for name, found in values.items()
        }

    def _connect(self, on_tag: Action | None, on_send: Action | None) -> None:
        for choice in self.filters.values():
            choice.observe(self._filter, names="value")
        self.mode.observe(self._change_mode, names="value")
        self.previous.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(1))
        if on_tag:
            self.tag_button.on_click(lambda _: self._act(on_tag))
        if on_send:
            self.send_button.on_click(lambda _: self._act(on_send))

    def _filter(self, _: object) -> None:
        wanted = {name: choice.value for name, choice in self.filters.items()}
        self.matching = [one for one in self.frames if _passes(one, wanted)]
        self._at = 0
        self._show()

    def _change_mode(self, change: Any) -> None:
        self._single = change["new"] == "one frame"
        if not self._single:
            self._at -= self._at % _PAGE
        self._show()

    def _turn(self, direction: int) -> None:
        step = 1 if self._single else _PAGE
        at = self._at + direction * step
        if 0 <= at < len(self.matching):
            self._at = at
            self._show()

    def _act(self, action: Action) -> None:
        frames = self.in_view
        if not frames:
            self.status.value = "No frame passes the filters."
            return
        self.status.value = f"{len(frames)} frames …"
        try:
            told = action(frames)
            # What an action returns may hold a link, so it is shown as it is.
            self.status.value = f"<b>{told if told is not None else 'done'}</b>"
        except WorkbenchError as error:
            hint = f"<br>{html.escape(error.hint)}" if error.hint else ""
            self.status.value = f"<b style='color:#b00020'>{html.escape(error.what)}</b>{hint}"

    def _show(self) -> None:
        chosen, total = len(self.matching), len(self.frames)
        if not chosen:
            self.count.value = f"No frame of {total} passes the filters."
            self.stage.children = ()
        elif self._single:
            self.count.value = f"Frame {self._at + 1} of {chosen} ({total} in all)"
            self.stage.children = (_whole(self.matching[self._at]),)
        else:
            last = min(self._at + _PAGE, chosen)
            self.count.value = f"Frames {self._at + 1} to {last} of {chosen} ({total} in all)"
            cells = [self._cell(one) for one in self.matching[self._at : last]]
            columns = f"repeat({_COLUMNS}, {_THUMBNAIL + 8}px)"
            layout = widgets.Layout(grid_template_columns=columns, grid_gap="6px")
            self.stage.children = (widgets.GridBox(cells, layout=layout),)
        for button in (self.tag_button, self.send_button):
            button.disabled = not chosen

    def _cell(self, shown: PicturedFrame) -> Any:
        look = widgets.Button(
            description=f"{shown.rank}. {shown.drive}"[:30],
            tooltip="Open this frame",
            layout=widgets.Layout(width=f"{_THUMBNAIL}px"),
        )
        look.on_click(lambda _: self.look_at(shown.frame))
        return widgets.VBox([_image(shown, _THUMBNAIL), look, _caption(shown, 2)])


def _passes(one: PicturedFrame, wanted: dict[str, str]) -> bool:
    has = {
        "light": {one.light},
        "weather": {one.weather},
        "class": one.classes,
        "arm": {one.arm},
        "drive": {one.drive},
    }
    return all(value == ALL or value in has[name] for name, value in wanted.items())


def _whole(shown: PicturedFrame) -> Any:
    facts = f"{shown.drive} · {shown.light} · {shown.weather} · {shown.arm} · {shown.frame[:12]}"
    fact_line = widgets.HTML(html.escape(facts))
    return widgets.VBox([_image(shown, _WHOLE), fact_line, _caption(shown, len(shown.reasons))])


def _image(shown: PicturedFrame, width: int) -> Any:
    return widgets.Image(value=draw(shown, width), format="png", layout=_wide(width))


def _caption(shown: PicturedFrame, count: int) -> Any:
    lines = "<br>".join(html.escape(reason) for reason in shown.reasons[:count])
    return widgets.HTML(f"<div style='line-height:1.25;font-size:11px'>{lines}</div>")


def _button(text: str, icon: str, action: Action | None) -> Any:
    layout = widgets.Layout(width="190px", display="" if action else "none")
    return widgets.Button(description=text, icon=icon, layout=layout)


def _wide(width: int) -> Any:
    return widgets.Layout(width=f"{width}px", max_width="100%")


def _slim() -> Any:
    return widgets.Layout(width="44px")


def _wrap() -> Any:
    return widgets.Layout(flex_flow="row wrap")
