"""More like this: pick a frame or a box on it, and see what a pool holds that is like it.

How likeness is found and what "Keep" does are handed in, so that this file knows no model.
Everything works from code as well: ``widget.pick(frame, box=2)``, ``widget.keep_button.click()``.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import replace

import ipywidgets as widgets

from workbench.errors import ParameterError, WorkbenchError
from workbench.widgets.pictured import DrawnBox, PicturedFrame, draw

Search = Callable[[str, DrawnBox | None], Sequence[PicturedFrame]]
"""Takes a frame's digest and a box on it, or None for all of it; gives the nearest, best first."""

Action = Callable[[tuple[str, ...]], object]

WHOLE = "the whole frame"
_SMALL, _LARGE, _COLUMNS = 220, 520, 4
_SUREST = 6
"""Boxes drawn on a frame of which all is looked for; the menu has the others."""


class MoreLikeThis(widgets.VBox):  # type: ignore[misc]
    """A frame to look at, what to look for in it, and what is like it.

    Args:
        frames: To pick from, each with the boxes that can be looked for.
        search: Finds what is like a frame or a box.
        on_keep: Called with the frames found and the exemplar's own, by "Keep as a selection".

    Attributes:
        drive, index, box: The controls; ``found``: the frames shown now, best first.
    """

    def __init__(
        self,
        frames: Sequence[PicturedFrame],
        search: Search,
        *,
        on_keep: Action | None = None,
    ) -> None:
        self.frames = list(frames)
        self.found: list[PicturedFrame] = []
        self._search, self._on_keep = search, on_keep
        drives = list(dict.fromkeys(one.drive for one in self.frames))
        self.drive = widgets.Dropdown(options=drives, description="drive")
        self.index = widgets.IntSlider(min=0, max=0, description="frame")
        self.box = widgets.Dropdown(options=[(WHOLE, -1)], description="look for")
        self.keep_button = widgets.Button(
            description="Keep as a selection", icon="save", layout=widgets.Layout(width="200px")
        )
        self.status = widgets.HTML()
        self.picture, self.grid = widgets.Box(), widgets.Box()
        self.drive.observe(lambda _: self._open_drive(), names="value")
        self.index.observe(lambda _: self._open_frame(), names="value")
        self.box.observe(lambda _: self._look(), names="value")
        self.keep_button.on_click(lambda _: self._keep())
        self.keep_button.layout.display = "" if on_keep else "none"
        controls = widgets.VBox(
            [self.drive, self.index, self.box, self.keep_button, self.status],
            layout=widgets.Layout(width="340px"),
        )
        super().__init__([widgets.HBox([self.picture, controls]), self.grid])
        if self.frames:
            self._open_drive()
        else:
            self._tell("There is no frame to pick from.")

    @property
    def frame(self) -> PicturedFrame:
        """The frame that is open."""
        number: int = self.index.value
        return self._of_drive[number]

    def pick(self, frame: str, box: int | None = None) -> None:
        """Open a frame by its digest and look for one of its boxes, or for all of it.

        Raises:
            ParameterError: It is none of the frames to pick from, or has no such box.
        """
        one = next((one for one in self.frames if one.frame == frame), None)
        if one is None:
            raise ParameterError(
                f"this is none of the {len(self.frames)} frames to pick from",
                where=frame,
                hint="Take a `frame` of the widget's `frames`",
            )
        if box is not None and not 0 <= box < len(one.boxes):
            raise ParameterError(
                f"the frame has {len(one.boxes)} boxes and none of this number",
                where=f"{frame[:12]}, box {box}",
                hint="Leave the box out to look for the whole frame",
            )
        self.drive.value = one.drive
        self.index.value = self._of_drive.index(one)
        self.box.value = -1 if box is None else box

    @property
    def _of_drive(self) -> list[PicturedFrame]:
        return [one for one in self.frames if one.drive == self.drive.value]

    def _open_drive(self) -> None:
        self.index.max = len(self._of_drive) - 1
        if self.index.value:
            self.index.value = 0
        else:
            self._open_frame()

    def _open_frame(self) -> None:
        named = [
            (f"{box.cls.replace('_', ' ')} {'' if box.score is None else f'{box.score:.2f}'}", n)
            for n, box in enumerate(self.frame.boxes)
        ]
        with self.box.hold_trait_notifications():
            self.box.options = [(WHOLE, -1), *named]
            self.box.value = -1
        self._look()

    def _look(self) -> None:
        if self.box.value is None:
            return
        chosen = self.frame.boxes[self.box.value] if self.box.value >= 0 else None
        shown = replace(self.frame, boxes=(chosen,) if chosen else self.frame.boxes[:_SUREST])
        self.picture.children = (_image(shown, _LARGE),)
        try:
            self.found = list(self._search(self.frame.frame, chosen))
            self._tell(f"the {len(self.found)} nearest to {_what(chosen)}")
        except WorkbenchError as error:
            self.found = []
            self._tell(f"{error.what}. {error.hint or ''}")
        cells = [widgets.VBox([_image(one, _SMALL), _caption(one)]) for one in self.found]
        layout = widgets.Layout(
            grid_template_columns=f"repeat({_COLUMNS}, {_SMALL + 8}px)", grid_gap="6px"
        )
        self.grid.children = (widgets.GridBox(cells, layout=layout),)
        self.keep_button.disabled = not self.found

    def _keep(self) -> None:
        if self._on_keep is None:
            return
        try:
            said = self._on_keep((self.frame.frame, *(one.frame for one in self.found)))
            self._tell(str(said))
        except WorkbenchError as error:
            self._tell(f"{error.what}. {error.hint or ''}")

    def _tell(self, text: str) -> None:
        self.status.value = html.escape(text)


def _what(box: DrawnBox | None) -> str:
    return "this frame" if box is None else f"this {box.cls.replace('_', ' ')}"


def _image(shown: PicturedFrame, width: int) -> widgets.Image:
    layout = widgets.Layout(width=f"{width}px", max_width="100%")
    return widgets.Image(value=draw(shown, width), format="png", layout=layout)


def _caption(shown: PicturedFrame) -> widgets.HTML:
    lines = "<br>".join(html.escape(line) for line in (shown.drive, *shown.reasons[:2]))
    return widgets.HTML(f"<div style='line-height:1.25;font-size:11px'>{lines}</div>")
