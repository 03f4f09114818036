"""Frame browser, similarity search, and the actions behind their buttons."""

from __future__ import annotations

import getpass
import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets

from workbench import curation, labeling, services
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.records.store import Store
from workbench.records.types import Prediction, Selection
from workbench.widgets.frames import DrawnBox, ShownFrame, draw_frame

FrameAction = Callable[[tuple[str, ...]], object]
"""Takes frame digests, does something, and returns what to tell the person."""

ALL_VALUES = "all"
_GRID_COLUMNS, _PAGE = 4, 8
_THUMBNAIL, _LARGE_PX = 240, 880


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
        frames: Sequence[ShownFrame],
        *,
        on_tag: FrameAction | None = None,
        on_send: FrameAction | None = None,
    ) -> None:
        self.frames = list(frames)
        self.matching = self.frames
        self._at = 0
        self._single = False
        self.filters = self._make_filters()
        self.previous = widgets.Button(
            icon="arrow-left", tooltip="Previous", layout=_narrow_layout()
        )
        self.next = widgets.Button(icon="arrow-right", tooltip="Next", layout=_narrow_layout())
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
                widgets.HBox(list(self.filters.values()), layout=_wrapping_layout()),
                widgets.HBox(
                    [self.previous, self.next, self.mode, self.tag_button, self.send_button],
                    layout=_wrapping_layout(),
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
                options=[ALL_VALUES, *sorted(found)],
                description=name,
                layout=widgets.Layout(width="210px"),
                style={"description_width": "60px"},
            )
            for name, found in values.items()
        }

    def _connect(self, on_tag: FrameAction | None, on_send: FrameAction | None) -> None:
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
        self.matching = [one for one in self.frames if _matches(one, wanted)]
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

    def _act(self, action: FrameAction) -> None:
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
            self.stage.children = (_large_view(self.matching[self._at]),)
        else:
            last = min(self._at + _PAGE, chosen)
            self.count.value = f"Frames {self._at + 1} to {last} of {chosen} ({total} in all)"
            cells = [self._cell(one) for one in self.matching[self._at : last]]
            columns = f"repeat({_GRID_COLUMNS}, {_THUMBNAIL + 8}px)"
            layout = widgets.Layout(grid_template_columns=columns, grid_gap="6px")
            self.stage.children = (widgets.GridBox(cells, layout=layout),)
        for button in (self.tag_button, self.send_button):
            button.disabled = not chosen

    def _cell(self, shown: ShownFrame) -> Any:
        look = widgets.Button(
            description=f"{shown.rank}. {shown.drive}"[:30],
            tooltip="Open this frame",
            layout=widgets.Layout(width=f"{_THUMBNAIL}px"),
        )
        look.on_click(lambda _: self.look_at(shown.frame))
        return widgets.VBox([_image(shown, _THUMBNAIL), look, _caption(shown, 2)])


def _matches(one: ShownFrame, wanted: dict[str, str]) -> bool:
    has = {
        "light": {one.light},
        "weather": {one.weather},
        "class": one.classes,
        "arm": {one.arm},
        "drive": {one.drive},
    }
    return all(value == ALL_VALUES or value in has[name] for name, value in wanted.items())


def _large_view(shown: ShownFrame) -> Any:
    facts = f"{shown.drive} · {shown.light} · {shown.weather} · {shown.arm} · {shown.frame[:12]}"
    fact_line = widgets.HTML(html.escape(facts))
    return widgets.VBox([_image(shown, _LARGE_PX), fact_line, _caption(shown, len(shown.reasons))])


def _image(shown: ShownFrame, width: int) -> Any:
    return widgets.Image(value=draw_frame(shown, width), format="png", layout=_width_layout(width))


def _caption(shown: ShownFrame, count: int) -> Any:
    lines = "<br>".join(html.escape(reason) for reason in shown.reasons[:count])
    return widgets.HTML(f"<div style='line-height:1.25;font-size:11px'>{lines}</div>")


def _button(text: str, icon: str, action: FrameAction | None) -> Any:
    layout = widgets.Layout(width="190px", display="" if action else "none")
    return widgets.Button(description=text, icon=icon, layout=layout)


def _width_layout(width: int) -> Any:
    return widgets.Layout(width=f"{width}px", max_width="100%")


def _narrow_layout() -> Any:
    return widgets.Layout(width="44px")


def _wrapping_layout() -> Any:
    return widgets.Layout(flex_flow="row wrap")


# ---- More like this: pick a frame or a box on it, and see what a pool holds that is like it.
#
# How likeness is found and what "Keep" does are handed in, so that this file knows no model.
# Everything works from code as well: ``widget.pick(frame, box=2)``, ``widget.keep_button.click()``.


SimilaritySearch = Callable[[str, DrawnBox | None], Sequence[ShownFrame]]
"""Takes a frame's digest and a box on it, or None for all of it; gives the nearest, best first."""

WHOLE_FRAME = "the whole frame"
_MATCH_PX, _PICKED_PX, _MATCH_COLUMNS = 220, 520, 4
_MAX_DRAWN_BOXES = 6
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
        frames: Sequence[ShownFrame],
        search: SimilaritySearch,
        *,
        on_keep: FrameAction | None = None,
    ) -> None:
        self.frames = list(frames)
        self.found: list[ShownFrame] = []
        self._search, self._on_keep = search, on_keep
        drives = list(dict.fromkeys(one.drive for one in self.frames))
        self.drive = widgets.Dropdown(options=drives, description="drive")
        self.index = widgets.IntSlider(min=0, max=0, description="frame")
        self.box = widgets.Dropdown(options=[(WHOLE_FRAME, -1)], description="look for")
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
    def frame(self) -> ShownFrame:
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
    def _of_drive(self) -> list[ShownFrame]:
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
            self.box.options = [(WHOLE_FRAME, -1), *named]
            self.box.value = -1
        self._look()

    def _look(self) -> None:
        if self.box.value is None:
            return
        chosen = self.frame.boxes[self.box.value] if self.box.value >= 0 else None
        shown = replace(
            self.frame, boxes=(chosen,) if chosen else self.frame.boxes[:_MAX_DRAWN_BOXES]
        )
        self.picture.children = (_box_image(shown, _PICKED_PX),)
        try:
            self.found = list(self._search(self.frame.frame, chosen))
            self._tell(f"the {len(self.found)} nearest to {_describe_target(chosen)}")
        except WorkbenchError as error:
            self.found = []
            self._tell(f"{error.what}. {error.hint or ''}")
        cells = [
            widgets.VBox([_box_image(one, _MATCH_PX), _match_caption(one)]) for one in self.found
        ]
        layout = widgets.Layout(
            grid_template_columns=f"repeat({_MATCH_COLUMNS}, {_MATCH_PX + 8}px)", grid_gap="6px"
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


def _describe_target(box: DrawnBox | None) -> str:
    return "this frame" if box is None else f"this {box.cls.replace('_', ' ')}"


def _box_image(shown: ShownFrame, width: int) -> widgets.Image:
    layout = widgets.Layout(width=f"{width}px", max_width="100%")
    return widgets.Image(value=draw_frame(shown, width), format="png", layout=layout)


def _match_caption(shown: ShownFrame) -> widgets.HTML:
    lines = "<br>".join(html.escape(line) for line in (shown.drive, *shown.reasons[:2]))
    return widgets.HTML(f"<div style='line-height:1.25;font-size:11px'>{lines}</div>")


# ---- What the buttons of a frame browser do: tag in FiftyOne, send to Label Studio.
#
# Both take frame digests and return the words that the browser shows. They are for people at a
# notebook, so they start the server they need; a step in production never does.


def tag_action(place: Workspace, dataset: str, tag: str) -> FrameAction:
    """Tag frames of FiftyOne's ``dataset``, with who did it and when."""

    def act(frames: Sequence[str]) -> str:
        new = curation.tag_frames(dataset, frames, tag, by=getpass.getuser(), workspace=place)
        return f"{new} frames tagged {tag!r} in FiftyOne ({len(frames) - new} had the tag)"

    return act


def send_action(
    place: Workspace, selection: Selection, predictions: Sequence[Prediction]
) -> FrameAction:
    """Send frames of ``selection``'s dataset to labelers, with ``predictions`` to start from."""

    def act(frames: Sequence[str]) -> str:
        store, dataset, model = Store(place), selection.dataset, selection.model
        why = "picked in the long-tail notebook"
        chosen = curation.select_manually(store, dataset, frames, why, model)
        batch = labeling.make_batch(store, dataset, chosen, model, predictions)
        services.up(place, ("label-studio",))
        admin = services.label_studio_admin(place)
        sent = labeling.send(place, labeling.connect(admin.url, admin.token), batch)
        link = f'<a href="{sent.url}" target="_blank">{sent.title}</a>'
        return f"{sent.sent} frames sent, {sent.already} there already: {link}"

    return act
