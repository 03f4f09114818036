"""Frame browser, similarity search, and the actions behind their buttons.

Everything works from code as well: ``browser.tag_button.click()``, ``widget.pick(frame, box=2)``.
"""

from __future__ import annotations

import getpass
import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
from IPython.display import Javascript, display

from workbench import curation, labeling, services
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.text import counted
from workbench.core.workspace import Workspace
from workbench.detection.model import Model
from workbench.records.dataset import load_dataset
from workbench.records.store import Store
from workbench.records.types import Prediction, Selection
from workbench.widgets.frames import DrawnBox, ShownFrame, draw_frame

__all__ = ["FrameBrowser", "MoreLikeThis", "send_action", "tag_action"]

FrameAction = Callable[[tuple[str, ...]], object]
"""Called with frame digests; returns a message to show."""

ALL_VALUES = "all"
_GRID_COLUMNS, _PAGE = 4, 8
_THUMBNAIL, _LARGE_PX, _ZOOMED_PX = 240, 880, 1760
SimilaritySearch = Callable[[str, DrawnBox | None], Sequence[ShownFrame]]
"""Called with a frame's digest and a box on it, or None; returns the most similar frames."""

Refinement = Callable[[tuple[str, ...], tuple[str, ...]], Sequence[ShownFrame]]
"""Called with frames answered yes and frames answered no; returns the next most similar frames."""

WHOLE_FRAME = "the whole frame"
_MATCH_PX, _PICKED_PX, _MATCH_COLUMNS = 220, 520, 4
_MAX_DRAWN_BOXES = 6
"""Boxes drawn while the whole frame is selected; the menu lists all."""


_KEYS = ("ArrowLeft", "ArrowRight", "t", "s", "z", "Escape")
_KEYS_HELP = "Click here, then: ← → turn · z zoom · Esc grid · t tag · s send"
_KEYS_SCRIPT = """
(() => {
  if (window.workbenchKeys) return;
  window.workbenchKeys = true;
  const style = document.createElement("style");
  style.textContent = ".workbench-keys:focus{outline:2px solid #0072b2;outline-offset:2px}";
  document.head.append(style);
  let clicked = null;
  const owner = (target) => {
    if (!(target instanceof Element)) return null;
    const root = target.closest(".workbench-keys");
    // JupyterLab moves the focus to the cell of the widget that was clicked.
    return root || (clicked && target.matches(".jp-Cell") && target.contains(clicked) ? clicked
      : null);
  };
  // On the window, while events travel down: before JupyterLab, which listens on the document.
  window.addEventListener("pointerdown", (event) => {
    clicked = event.target instanceof Element && event.target.closest(".workbench-keys");
  }, true);
  window.addEventListener("click", (event) => {
    if (!clicked || event.target.closest("input, select, textarea")) return;
    clicked.tabIndex = 0;
    setTimeout((root) => root.focus({preventScroll: true}), 0, clicked);
  }, true);
  window.addEventListener("keydown", (event) => {
    const root = owner(event.target);
    if (!root) return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    // JupyterLab leaves keys in text fields alone; sliders listen for theirs.
    if (event.target.closest("input, textarea, [contenteditable=true]")) return;
    if (event.target.closest("[role=slider]") && /^(Arrow|Home|End|Page)/.test(event.key)) return;
    event.stopImmediatePropagation();
    const button = root.querySelector(".workbench-key-" + CSS.escape(event.key));
    if (!button || (event.target.closest("select") && event.key !== "Escape")) return;
    event.preventDefault();
    if (!button.disabled) button.click();
  }, true);
})();
"""


class _KeyboardBox(widgets.VBox):  # type: ignore[misc]
    """A box whose keys press its buttons and never reach JupyterLab.

    A button of the class ``workbench-key-KEY`` is pressed by the key that browsers call KEY.
    """

    def __init__(self, children: Sequence[Any]) -> None:
        super().__init__(children, tabbable=True)
        self.add_class("workbench-keys")

    def _ipython_display_(self, **options: Any) -> None:
        display(Javascript(_KEYS_SCRIPT))  # type: ignore[no-untyped-call]
        display(self._repr_mimebundle_(**options), raw=True)  # type: ignore[no-untyped-call]


class FrameBrowser(_KeyboardBox):
    """Frames to look at, filter, tag and send: a grid of thumbnails, or one frame.

    Keys, after a click into the widget: ← and → turn, ``z`` zooms, Esc goes back to the grid, ``t``
    tags and ``s`` sends. JupyterLab does not see them. Sending several frames asks once more.

    Args:
        frames: In the order to show them.
        on_tag: Called with the frames in view by "Tag in FiftyOne"; without it, no button.
        on_send: Called with the frames in view by "Send to Label Studio"; without it, no button.

    Attributes:
        filters: Dropdowns of light, weather, class, arm and drive.
        score: Slider of the lowest score of a box that is drawn and filtered by; labels stay.
        matching: Frames that match the filters.
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
        self.score = widgets.FloatSlider(
            description="score ≥",
            max=0.95,
            step=0.05,
            continuous_update=False,
            layout=widgets.Layout(width="260px"),
            style={"description_width": "60px"},
        )
        self.score.disabled = all(box.score is None for one in self.frames for box in one.boxes)
        self.previous = widgets.Button(
            icon="arrow-left", tooltip="Previous (←)", layout=_narrow_layout()
        )
        self.next = widgets.Button(icon="arrow-right", tooltip="Next (→)", layout=_narrow_layout())
        self.zoom = widgets.ToggleButton(
            icon="search-plus", tooltip="Zoom (z)", layout=_narrow_layout()
        )
        self.back = widgets.Button(icon="th", tooltip="Grid (Esc)", layout=_narrow_layout())
        self.mode = widgets.ToggleButtons(
            options=["grid", "one frame"], style={"button_width": "96px"}
        )
        self.tag_button = _button("Tag in FiftyOne", "tag", on_tag)
        self.send_button = _button("Send to Label Studio", "paper-plane", on_send)
        self.count = widgets.HTML()
        self.legend = widgets.HTML(_legend(self.frames))
        self.status = widgets.HTML()
        self.stage = widgets.Box()
        self._to_confirm: tuple[str, ...] = ()
        self._connect(on_tag, on_send)
        super().__init__(
            [
                widgets.HBox([*self.filters.values(), self.score], layout=_wrapping_layout()),
                widgets.HBox(
                    [
                        *(self.previous, self.next, self.back, self.zoom, self.mode),
                        *(self.tag_button, self.send_button),
                    ],
                    layout=_wrapping_layout(),
                ),
                self.count,
                self.legend,
                self.stage,
                widgets.HTML(f"<div style='font-size:11px;opacity:.75'>{_KEYS_HELP}</div>"),
                self.status,
            ]
        )
        buttons = (
            self.previous,
            self.next,
            self.tag_button,
            self.send_button,
            self.zoom,
            self.back,
        )
        for key, button in zip(_KEYS, buttons, strict=True):
            button.add_class(f"workbench-key-{key}")
        self._show()

    @property
    def in_view(self) -> tuple[str, ...]:
        """Frames that the buttons act on: the open frame, else all that match the filters."""
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
                options=[ALL_VALUES, *sorted(options_)],
                description=name,
                layout=widgets.Layout(width="210px"),
                style={"description_width": "60px"},
            )
            for name, options_ in values.items()
        }

    def _connect(self, on_tag: FrameAction | None, on_send: FrameAction | None) -> None:
        for choice in self.filters.values():
            choice.observe(self._filter, names="value")
        self.score.observe(self._filter, names="value")
        self.mode.observe(self._change_mode, names="value")
        self.previous.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(1))
        self.back.on_click(lambda _: setattr(self.mode, "value", "grid"))
        self.zoom.observe(self._change_zoom, names="value")
        if on_tag:
            self.tag_button.on_click(lambda _: self._act(on_tag))
        if on_send:
            self.send_button.on_click(lambda _: self._send_in_view(on_send))

    def _filter(self, _: object) -> None:
        wanted = {name: choice.value for name, choice in self.filters.items()}
        drawn = (_above_score(one, self.score.value) for one in self.frames)
        self.matching = [one for one in drawn if _passes_filters(one, wanted)]
        self._at = 0
        self._show()

    def _change_mode(self, change: Any) -> None:
        self._single = change["new"] == "one frame"
        if not self._single:
            self._at -= self._at % _PAGE
            self.zoom.value = False
        self._show()

    def _turn(self, direction: int) -> None:
        step = 1 if self._single else _PAGE
        at = self._at + direction * step
        if 0 <= at < len(self.matching):
            self._at = at
            self._show()

    def _change_zoom(self, change: Any) -> None:
        if change["new"] and not self._single and self.matching:
            self.look_at(self.matching[self._at].frame)
        else:
            self._show()

    def _send_in_view(self, action: FrameAction) -> None:
        """Send what is in view; several frames only at the second press."""
        frames = self.in_view
        if len(frames) > 1 and self._to_confirm != frames:
            self._to_confirm = frames
            self.status.value = (
                f"<b>Send {counted(len(frames), 'frame')} to labelers? "
                "Press the button or s again.</b>"
            )
            return
        self._to_confirm = ()
        self._act(action)

    def _act(self, action: FrameAction) -> None:
        frames = self.in_view
        if not frames:
            self.status.value = "No frame matches the filters."
            return
        self.status.value = f"{counted(len(frames), 'frame')} …"
        try:
            message = action(frames)
            # The message may contain a link, so it is not escaped.
            self.status.value = f"<b>{message if message is not None else 'done'}</b>"
        except WorkbenchError as error:
            hint = f"<br>{html.escape(error.hint)}" if error.hint else ""
            self.status.value = f"<b style='color:#b00020'>{html.escape(error.what)}</b>{hint}"

    def _show(self) -> None:
        self._to_confirm = ()
        chosen, total = len(self.matching), len(self.frames)
        if not chosen:
            self.count.value = f"None of {counted(total, 'frame')} matches the filters."
            self.stage.children = ()
        elif self._single:
            self.count.value = f"Frame {self._at + 1} of {chosen} ({total} in total)"
            self.stage.children = (_large_view(self.matching[self._at], zoomed=self.zoom.value),)
        else:
            last = min(self._at + _PAGE, chosen)
            self.count.value = f"Frames {self._at + 1} to {last} of {chosen} ({total} in total)"
            cells = [self._cell(one) for one in self.matching[self._at : last]]
            columns = f"repeat({_GRID_COLUMNS}, {_THUMBNAIL + 8}px)"
            layout = widgets.Layout(grid_template_columns=columns, grid_gap="6px")
            self.stage.children = (widgets.GridBox(cells, layout=layout),)
        for button in (self.tag_button, self.send_button):
            button.disabled = not chosen

    def _cell(self, shown: ShownFrame) -> Any:
        button = widgets.Button(
            description=f"{shown.rank}. {shown.drive}"[:30],
            tooltip="Open this frame",
            layout=widgets.Layout(width=f"{_THUMBNAIL}px"),
        )
        button.on_click(lambda _: self.look_at(shown.frame))
        return widgets.VBox([_image(shown, _THUMBNAIL), button, _caption(shown.reasons[:2])])


class MoreLikeThis(_KeyboardBox):
    """A frame to look at, what to search for in it, and the most similar frames.

    Args:
        frames: To pick from, each with the boxes that can be searched for.
        search: Finds frames similar to a frame or a box.
        refine: Searches again with a person's answers; without it, there are no answer buttons.
        on_keep: Called with the exemplar's frame, the confirmed frames and the matches by "Keep as
            a selection".

    Attributes:
        drive: Dropdown of drives.
        index: Slider of the drive's frames.
        box: Dropdown of the frame's boxes.
        matches: Frames shown now, most similar first.
        answers: Buttons ``yes``, ``no`` and ``?`` of each match, by frame.
        confirmed: Frames that were answered with yes since the search began.
    """

    def __init__(
        self,
        frames: Sequence[ShownFrame],
        search: SimilaritySearch,
        *,
        refine: Refinement | None = None,
        on_keep: FrameAction | None = None,
    ) -> None:
        self.frames = list(frames)
        self.matches: list[ShownFrame] = []
        self.answers: dict[str, Any] = {}
        self.confirmed: list[str] = []
        self._search, self._refine, self._on_keep = search, refine, on_keep
        self.refit_button = widgets.Button(
            description="Search again with the answers",
            icon="refresh",
            layout=widgets.Layout(width="240px", display="" if refine else "none"),
        )
        self.refit_button.on_click(lambda _: self.refit())
        drives = list(dict.fromkeys(one.drive for one in self.frames))
        self.drive = widgets.Dropdown(options=drives, description="drive")
        self.index = widgets.IntSlider(min=0, max=0, description="frame")
        self.box = widgets.Dropdown(options=[(WHOLE_FRAME, -1)], description="search for")
        self.keep_button = widgets.Button(
            description="Keep as a selection", icon="save", layout=widgets.Layout(width="200px")
        )
        self.status = widgets.HTML()
        self.preview, self.grid = widgets.Box(), widgets.Box()
        self.drive.observe(lambda _: self._open_drive(), names="value")
        self.index.observe(lambda _: self._open_frame(), names="value")
        self.box.observe(lambda _: self._look(), names="value")
        self.keep_button.on_click(lambda _: self._keep())
        self.keep_button.layout.display = "" if on_keep else "none"
        controls = widgets.VBox(
            [
                self.drive,
                self.index,
                self.box,
                self.refit_button,
                self.keep_button,
                self.status,
            ],
            layout=widgets.Layout(width="340px"),
        )
        super().__init__([widgets.HBox([self.preview, controls]), self.grid])
        if self.frames:
            self._open_drive()
        else:
            self._show_message("No frames to pick from.")

    @property
    def frame(self) -> ShownFrame:
        """The open frame."""
        number: int = self.index.value
        return self._of_drive[number]

    def pick(self, frame: str, box: int | None = None) -> None:
        """Open a frame and search for it or for one of its boxes.

        Args:
            frame: Digest.
            box: Index of a box; None searches for the whole frame.

        Raises:
            ParameterError: An unknown frame or box.
        """
        one = next((one for one in self.frames if one.frame == frame), None)
        if one is None:
            raise ParameterError(
                "unknown frame id",
                where=frame,
                hint="Use a `frame` from the widget's `frames`",
            )
        if box is not None and not 0 <= box < len(one.boxes):
            raise ParameterError(
                f"unknown box: the frame has {counted(len(one.boxes), 'box', 'boxes')}",
                where=f"{frame[:12]}, box {box}",
                hint="Omit the box to search for the whole frame",
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
        self.preview.children = (_image(shown, _PICKED_PX),)
        self.confirmed = []
        try:
            matches = list(self._search(self.frame.frame, chosen))
            self._show_message(f"the {len(matches)} nearest to {_describe_target(chosen)}")
        except WorkbenchError as error:
            matches = []
            self._show_message(f"{error.what}. {error.hint or ''}")
        self._show_matches(matches)

    def refit(self) -> None:
        """Search again with the answers given to the matches shown; the button does the same."""
        if self._refine is None:
            return
        given = {
            word: tuple(frame for frame, one in self.answers.items() if one.value == word)
            for word in ("yes", "no")
        }
        if not given["yes"] and not given["no"]:
            self._show_message("No answers yet: press yes or no under some of the matches.")
            return
        try:
            matches = list(self._refine(given["yes"], given["no"]))
        except WorkbenchError as error:
            self._show_message(f"{error.what}. {error.hint or ''}")
            return
        self.confirmed += given["yes"]
        self._show_message(
            f"searched again with {len(given['yes'])} yes and {len(given['no'])} no;"
            f" {counted(len(self.confirmed), 'frame')} confirmed so far"
        )
        self._show_matches(matches)

    def _show_matches(self, matches: list[ShownFrame]) -> None:
        self.matches = matches
        self.answers = {one.frame: _answer_buttons() for one in matches} if self._refine else {}
        cells = [
            widgets.VBox(
                [
                    _image(one, _MATCH_PX),
                    _caption((one.drive, *one.reasons[:2])),
                    *([self.answers[one.frame]] if self._refine else []),
                ]
            )
            for one in self.matches
        ]
        layout = widgets.Layout(
            grid_template_columns=f"repeat({_MATCH_COLUMNS}, {_MATCH_PX + 8}px)", grid_gap="6px"
        )
        self.grid.children = (widgets.GridBox(cells, layout=layout),)
        self.keep_button.disabled = not (self.matches or self.confirmed)

    def _keep(self) -> None:
        if self._on_keep is None:
            return
        try:
            kept = (self.frame.frame, *self.confirmed, *(one.frame for one in self.matches))
            message = self._on_keep(tuple(dict.fromkeys(kept)))
            self._show_message(str(message))
        except WorkbenchError as error:
            self._show_message(f"{error.what}. {error.hint or ''}")

    def _show_message(self, text: str) -> None:
        self.status.value = html.escape(text)


def tag_action(workspace: Workspace, dataset: str, tag: str) -> FrameAction:
    """Action that tags frames in FiftyOne, with author and time.

    Args:
        workspace: Its mongod.
        dataset: Name of the dataset in FiftyOne.
        tag: The tag.
    """

    def act(frames: Sequence[str]) -> str:
        new = curation.tag_frames(dataset, frames, tag, by=getpass.getuser(), workspace=workspace)
        return (
            f"{counted(new, 'frame')} tagged {tag!r} in FiftyOne ({len(frames) - new} had the tag)"
        )

    return act


def send_action(
    workspace: Workspace,
    selection: Selection,
    reason: str = "picked in a notebook",
) -> FrameAction:
    """Action that sends frames to labelers; it starts Label Studio if necessary.

    They start from boxes of the selection's model, see `labeling.predict_first_boxes`.

    Args:
        workspace: Its records and servers.
        selection: Its dataset version has the frames.
        reason: Shown to labelers beside every frame.
    """

    def act(frames: Sequence[str]) -> str:
        store, dataset, model = Store(workspace), selection.dataset, selection.model
        chosen = curation.select_manually(store, dataset, frames, reason, model)
        boxes: tuple[Prediction, ...] = ()
        if model is not None:
            version = load_dataset(store, dataset)
            first = labeling.predict_first_boxes(Model(workspace, model), version, frames)
            boxes = first.boxes
        batch = labeling.make_batch(store, dataset, chosen, model if boxes else None, boxes)
        services.up(workspace, ("label-studio",))
        admin = services.label_studio_admin(workspace)
        sent = labeling.send(workspace, labeling.connect(admin.url, admin.token), batch)
        link = f'<a href="{sent.url}" target="_blank">{sent.title}</a>'
        return f"{counted(sent.sent, 'frame')} sent, {sent.already} already there: {link}"

    return act


def _above_score(one: ShownFrame, lowest: float) -> ShownFrame:
    boxes = tuple(box for box in one.boxes if box.score is None or box.score >= lowest)
    return one if boxes == one.boxes else replace(one, boxes=boxes)


def _passes_filters(one: ShownFrame, filters: dict[str, str]) -> bool:
    values = {
        "light": {one.light},
        "weather": {one.weather},
        "class": one.classes,
        "arm": {one.arm},
        "drive": {one.drive},
    }
    return all(value == ALL_VALUES or value in values[name] for name, value in filters.items())


def _large_view(shown: ShownFrame, *, zoomed: bool) -> Any:
    facts = f"{shown.drive} · {shown.light} · {shown.weather} · {shown.arm} · {shown.frame[:12]}"
    image = _image(shown, _ZOOMED_PX if zoomed else _LARGE_PX)
    if zoomed:
        image.layout.max_width = "none"
        image.layout.flex = "0 0 auto"
        window = widgets.Layout(width=f"{_LARGE_PX}px", height="500px", overflow="auto")
        image = widgets.Box([image], layout=window)
    parts = [image, widgets.HTML(html.escape(facts)), _caption(shown.reasons)]
    return widgets.VBox(parts)


def _image(shown: ShownFrame, width: int) -> Any:
    layout = widgets.Layout(width=f"{width}px", max_width="100%")
    return widgets.Image(value=draw_frame(shown, width), format="png", layout=layout)


def _caption(lines: Sequence[str]) -> Any:
    text = "<br>".join(html.escape(line) for line in lines)
    return widgets.HTML(f"<div style='line-height:1.25;font-size:11px'>{text}</div>")


def _legend(frames: Sequence[ShownFrame]) -> str:
    """The colours of the classes that are drawn on some frame."""
    colours = {box.cls: box.drawn_colour for frame in frames for box in frame.boxes}
    return " ".join(
        f"<span style='white-space:nowrap;margin-right:10px;font-size:11px'><span style='display:"
        f"inline-block;width:14px;height:3px;margin-right:4px;vertical-align:middle;background:"
        f"{colour}'></span>{html.escape(cls.replace('_', ' '))}</span>"
        for cls, colour in sorted(colours.items())
    )


def _button(text: str, icon: str, action: FrameAction | None) -> Any:
    layout = widgets.Layout(width="190px", display="" if action else "none")
    return widgets.Button(description=text, icon=icon, layout=layout)


def _answer_buttons() -> Any:
    buttons = widgets.ToggleButtons(options=["?", "yes", "no"], value="?")
    buttons.style.button_width = "52px"
    return buttons


def _narrow_layout() -> Any:
    return widgets.Layout(width="44px")


def _wrapping_layout() -> Any:
    return widgets.Layout(flex_flow="row wrap")


def _describe_target(box: DrawnBox | None) -> str:
    return "this frame" if box is None else f"this {box.cls.replace('_', ' ')}"
