"""The frame browser: thousands of frames in a notebook, and the actions behind its buttons.

Everything works from code as well: ``browser.mark(frames)``, ``browser.act("Tag in FiftyOne")``.
The page is written in plain modules of JavaScript in ``static``; nothing is built or fetched.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

from workbench import curation, labeling, services
from workbench.core.errors import DataError, ParameterError, WorkbenchError
from workbench.core.text import counted, short_repr
from workbench.core.workspace import Workspace
from workbench.data.drawing import palette
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.model import Model
from workbench.records.dataset import load_dataset
from workbench.records.store import Store
from workbench.records.types import Prediction, Selection
from workbench.widgets.frames import DrawnBox, ShownFrame, pack_frames
from workbench.widgets.thumbnails import Thumbnails, whole_image

__all__ = ["BrowserExtras", "FrameBrowser", "send_action", "tag_action"]

TAG, SEND = "Tag in FiftyOne", "Send to labelers"
_KEYS = {TAG: "t", SEND: "s"}
_MODULES = ("state", "grid", "frame", "map", "browser")
_STATIC = Path(__file__).with_name("static")


@dataclass(frozen=True)
class ActionResult:
    """What an action has to say, with a link to follow."""

    text: str
    url: str = ""
    title: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.url}" if self.url else self.text


FrameAction = Callable[..., object]
"""Called with frame digests; returns a message or an `ActionResult` to show."""


@dataclass(frozen=True)
class AskingAction:
    """An action that asks for words before it is done.

    Attributes:
        act: Called with frame digests, an argument for each field, and ``model`` and ``score`` as
            they are set on the page.
        fields: What the page asks for, by name of the argument.
    """

    act: Callable[..., object]
    fields: Mapping[str, str]

    def __call__(self, frames: tuple[str, ...], **answers: Any) -> object:
        if missing := [name for name in self.fields if not str(answers.get(name, "")).strip()]:
            raise ParameterError(f"no {missing[0]} given", hint=self.fields[missing[0]])
        return self.act(frames, **answers)


SimilaritySearch = Callable[[str, DrawnBox | None], Sequence[ShownFrame]]
"""Called with a frame's digest and a box on it, or None; returns the most similar frames."""

Refinement = Callable[[tuple[str, ...], tuple[str, ...]], Sequence[ShownFrame]]
"""Called with frames answered yes and frames answered no; returns the next most similar frames."""


@dataclass(frozen=True)
class ExplainedMiss:
    """Why a label was missed, in a sentence."""

    cls: str
    xyxy: tuple[float, float, float, float]
    why: str


@dataclass(frozen=True)
class SliceChange:
    """Recall of two models on a slice, the difference and its interval."""

    slice: str
    boxes: int
    first: float
    second: float
    value: float
    low: float
    high: float


@short_repr
@dataclass(frozen=True)
class BrowserExtras:
    """What the browser can show and do beside frames; each part may be missing.

    Attributes:
        points: Float ``[n, 2]``: the frames on the embedding map.
        search: Finds frames similar to a frame or a box: "more like this".
        refine: Searches again with a person's answers.
        explain: Why labels of a frame were missed by a model at a score: called with the frame's
            digest, the model's name and the score.
        nearest: What training has that is like a label, a line each; called with the frame's digest
            and the label.
        comparison: The first two models by slice.
        select: Keeps frames as a selection: called with digests and a reason.
    """

    points: NDArray[np.float32] | None = None
    search: SimilaritySearch | None = None
    refine: Refinement | None = None
    explain: Callable[[str, str, float], Sequence[ExplainedMiss]] | None = None
    nearest: Callable[[str, DrawnBox], Sequence[str]] | None = None
    comparison: tuple[SliceChange, ...] = ()
    select: Callable[[tuple[str, ...], str], Any] | None = None


class FrameBrowser(anywidget.AnyWidget):  # type: ignore[misc]
    """Frames to look at, filter, compare, mark, and act upon.

    Click a frame for a large view; its keys are listed at the bottom, and JupyterLab does not see
    them. Actions are done with the marked frames, whose number is confirmed first.

    Args:
        frames: In the order to show them.
        workspace: Keeps thumbnails; without one they are made anew.
        on_tag: Called with the marked frames by "Tag in FiftyOne"; without it, no button.
        on_send: Called with the marked frames by "Send to labelers"; without it, no button.
        actions: Further actions by the text of their buttons.
        score: Predictions below are not shown at first.
        extras: Map, search, explanations and comparison.
    """

    _esm = "\n".join((_STATIC / f"{name}.js").read_text("utf-8") for name in _MODULES)
    _css = (_STATIC / "browser.css").read_text("utf-8")
    _marks = traitlets.CBytes(b"").tag(sync=True)
    _picked = traitlets.CBytes(b"").tag(sync=True)
    _picked_title = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        frames: Sequence[ShownFrame],
        *,
        workspace: Workspace | None = None,
        on_tag: FrameAction | None = None,
        on_send: FrameAction | None = None,
        actions: Mapping[str, FrameAction] | None = None,
        score: float = CONFIDENCE_THRESHOLD,
        extras: BrowserExtras | None = None,
    ) -> None:
        self.frames = tuple(frames)
        self.extras = extras or BrowserExtras()
        given = {TAG: on_tag, SEND: on_send, **(actions or {})}
        self.actions = {name: action for name, action in given.items() if action}
        self.first_score = score
        self._thumbnails = Thumbnails(workspace)
        self._rows = {one.frame: row for row, one in enumerate(self.frames)}
        points = self.extras.points
        if points is not None and points.shape != (len(self.frames), 2):
            raise ParameterError(
                f"{len(points)} points for {counted(len(self.frames), 'frame')}",
                where="points",
                hint="Give one row x, y for each frame, in the same order",
            )
        super().__init__()
        self.on_msg(lambda _, message, buffers: self._receive(message))

    @property
    def marked(self) -> tuple[str, ...]:
        """Digests of the marked frames, in the order of marking."""
        return self._digests(self._marks)

    @property
    def picked(self) -> tuple[str, ...]:
        """Digests of the frames that a lasso, a search or `show_only` chose; empty for all."""
        return self._digests(self._picked)

    def mark(self, frames: Iterable[str]) -> None:
        """Mark exactly these frames, on the page as well.

        Raises:
            ParameterError: An unknown frame.
        """
        self._marks = self._numbers(frames)

    def show_only(self, frames: Iterable[str], title: str = "from the notebook") -> None:
        """Show these frames in this order; without any, all again."""
        self._picked_title = title
        self._picked = self._numbers(frames)

    def selection(self, reason: str = "marked in the frame browser") -> Any:
        """The marked frames as a selection, with one reason for all.

        Raises:
            ParameterError: No frame is marked, or the browser knows of no dataset version.
        """
        if self.extras.select is None:
            raise ParameterError(
                "this browser cannot keep selections",
                hint="Open it with `wb.open().browse(...)`, or use `browser.marked`",
            )
        return self.extras.select(self._some_marked(), reason)

    def act(self, name: str, **answers: Any) -> object:
        """Do what a button does, with the marked frames.

        Args:
            name: Text of the button.
            answers: What the page would ask for, by field.

        Raises:
            ParameterError: No such button, or no frame is marked.
        """
        if name not in self.actions:
            raise ParameterError(
                f"unknown action {name!r}", hint=f"Actions: {', '.join(self.actions) or 'none'}"
            )
        return self.actions[name](self._some_marked(), **answers)

    def __repr__(self) -> str:
        return f"FrameBrowser({counted(len(self.frames), 'frame')}, {len(self.marked)} marked)"

    def _some_marked(self) -> tuple[str, ...]:
        if not (marked := self.marked):
            raise ParameterError(
                "no frame is marked", hint="Press Space on frames, or call `browser.mark(frames)`"
            )
        return marked

    def _digests(self, numbers: bytes) -> tuple[str, ...]:
        rows = np.frombuffer(numbers, "<u4").tolist()
        return tuple(self.frames[row].frame for row in rows if row < len(self.frames))

    def _numbers(self, frames: Iterable[str]) -> bytes:
        wanted = list(dict.fromkeys(frames))
        for frame in wanted:
            if frame not in self._rows:
                raise ParameterError(
                    "unknown frame id", where=frame, hint="Use ids of the browser's `frames`"
                )
        return np.array([self._rows[frame] for frame in wanted], "<u4").tobytes()

    def _receive(self, message: dict[str, Any]) -> None:
        """Answer the page."""
        kind = message.get("type")
        if kind == "ready":
            self._send_frames()
        elif kind == "images":
            self._send_images(message["kind"], message["frames"])
        elif kind == "act":
            self._answer_act(message["action"], message["frames"], message.get("answers", {}))
        elif kind in ("like", "refine"):
            self._answer_search(message)
        elif kind == "why":
            self._answer_why(message["frame"], message["model"], message["score"])
        elif kind == "nearest":
            self._answer_nearest(message["frame"], message["label"])

    def _send_frames(self) -> None:
        header, arrays = pack_frames(self.frames)
        if self.extras.points is not None:
            arrays["points"] = _unit_square(self.extras.points)
        extras = self.extras
        header |= {
            "type": "frames",
            "buffers": list(arrays),
            "score": self.first_score if header["models"] else 0,
            "order": "by rank" if any(one.rank for one in self.frames) else "",
            "actions": [
                {
                    "name": name,
                    "key": _KEYS.get(name, ""),
                    "fields": dict(act.fields) if isinstance(act, AskingAction) else {},
                }
                for name, act in self.actions.items()
            ],
            "palette": list(palette()),
            "comparison": [vars(one) for one in extras.comparison],
            "can_search": extras.search is not None,
            "can_refine": extras.refine is not None,
            "can_explain": extras.explain is not None,
            "can_compare_training": extras.nearest is not None,
        }
        self.send(header, [one.tobytes() for one in arrays.values()])

    def _send_images(self, kind: str, rows: Sequence[int]) -> None:
        rows = [row for row in rows if 0 <= row < len(self.frames)]
        images = [(self.frames[row].image, self.frames[row].frame) for row in rows]
        found: list[bytes | DataError] = []
        if kind == "thumbnail":
            found = self._thumbnails.get(images)
        else:
            for path, frame in images:
                try:
                    found.append(whole_image(path, frame))
                except DataError as error:
                    found.append(error)
        errors = ["" if isinstance(one, bytes) else one.what for one in found]
        answer = {"type": "images", "kind": kind, "frames": rows, "errors": errors}
        self.send(answer, [one if isinstance(one, bytes) else b"" for one in found])

    def _answer_act(self, name: str, rows: Sequence[int], answers: Mapping[str, Any]) -> None:
        frames = tuple(self.frames[row].frame for row in rows if 0 <= row < len(self.frames))
        try:
            if name not in self.actions or not frames:
                raise ParameterError(f"unknown action {name!r}" if frames else "no frame is marked")
            said = self.actions[name](frames, **answers)
        except WorkbenchError as error:
            self._say(error.what, error.hint or "", error=True)
        else:
            if isinstance(said, ActionResult):
                link = {"href": said.url, "text": said.title or said.url} if said.url else None
                self._say(said.text, link=link)
            else:
                self._say("done" if said is None else str(said))

    def _answer_search(self, message: dict[str, Any]) -> None:
        extras = self.extras
        try:
            if message["type"] == "refine" and extras.refine:
                yes, no = (
                    tuple(self.frames[row].frame for row in message[word]) for word in ("yes", "no")
                )
                found, title = extras.refine(yes, no), "searched again"
            elif message["type"] == "like" and extras.search:
                one, box = self.frames[message["frame"]], message["box"]
                cls = message["cls"] or "what is in the box"
                drawn = DrawnBox(cls, tuple(box)) if box else None
                found = extras.search(one.frame, drawn)
                title = f"like {cls.replace('_', ' ') if box else 'this frame'}"
            else:
                raise ParameterError("this browser cannot search")
        except WorkbenchError as error:
            self._say(error.what, error.hint or "", error=True)
            return
        known = [one for one in found if one.frame in self._rows]
        answer = {
            "type": "like",
            "title": title,
            "frames": [self._rows[one.frame] for one in known],
            "notes": [one.reasons[0] if one.reasons else "" for one in known],
            "boxes": [list(one.boxes[0].xyxy) if one.boxes else None for one in known],
        }
        self.send(answer)

    def _answer_why(self, row: int, model: int, score: float) -> None:
        if self.extras.explain is None:
            return
        shown = self.frames[row]
        models = list(
            dict.fromkeys(
                box.model for one in self.frames for box in one.boxes if box.score is not None
            )
        )
        try:
            misses = self.extras.explain(shown.frame, models[model], score)
        except WorkbenchError as error:
            self._say(error.what, error.hint or "", error=True)
            return
        labels = [box for box in shown.boxes if box.score is None]
        explained: dict[int, str] = {}
        for miss in misses:
            for position, label in enumerate(labels):
                same = label.cls == miss.cls and np.allclose(label.xyxy, miss.xyxy)
                if same and position not in explained:
                    explained[position] = miss.why
                    break
        self.send({"type": "why", "frame": row, "misses": explained})

    def _answer_nearest(self, row: int, position: int) -> None:
        if self.extras.nearest is None:
            return
        shown = self.frames[row]
        label = [box for box in shown.boxes if box.score is None][position]
        try:
            lines = list(self.extras.nearest(shown.frame, label))
        except WorkbenchError as error:
            lines = [error.what]
        self.send({"type": "nearest", "frame": row, "label": position, "lines": lines})

    def _say(
        self, text: str, hint: str = "", *, error: bool = False, link: dict[str, str] | None = None
    ) -> None:
        self.send({"type": "status", "text": text, "hint": hint, "error": error, "link": link})


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

    def act(frames: Sequence[str]) -> ActionResult:
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
        text = f"{counted(sent.sent, 'frame')} sent, {sent.already} already there"
        return ActionResult(text, sent.url, sent.title)

    return act


def _unit_square(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Points in [0, 1], y down; both axes by one scale."""
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - (low + high) / 2) / max(float((high - low).max()), 1e-12) + 0.5
    scaled[:, 1] = 1 - scaled[:, 1]
    unit: NDArray[np.float32] = scaled.astype(np.float32)
    return unit
