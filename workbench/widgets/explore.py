"""A frame browser of a dataset version with everything connected: what `wb.open().browse` opens."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench import curation
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Progress
from workbench.curation.signals.similarity import region_vector
from workbench.curation.vectors import principal_components, unit_vectors
from workbench.data import incidents
from workbench.data.slices import ALL_FRAMES, STANDARD_SLICES
from workbench.detection.model import Model, Predictions
from workbench.evaluation.comparison import Comparison
from workbench.evaluation.incidents import missed_labels
from workbench.evaluation.metrics import evaluate
from workbench.evaluation.misses import explain_misses, worst_frames
from workbench.evaluation.results import ALL_CLASSES, EvaluationSettings
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Label, Role
from workbench.records.store import Store
from workbench.records.types import Selection
from workbench.widgets.browser import (
    AskingAction,
    BrowserExtras,
    ExplainedMiss,
    FrameAction,
    FrameBrowser,
    SliceChange,
    send_action,
    tag_action,
)
from workbench.widgets.frames import (
    DrawnBox,
    ShownFrame,
    dataset_frames,
    embedded_frames,
    similar_frames,
)

__all__ = ["explore"]

_LOWEST_SCORE = 0.05
"""Boxes below are not sent to the page."""
_FOUND, _NEAREST, _MINED = 60, 3, 50
_TRAINING_ROLES = (Role.SEED, Role.TRAIN)


def explore(
    dataset: Dataset,
    models: Sequence[Model] = (),
    *,
    roles: Sequence[str] = (),
    embeddings: bool = True,
    keep: Callable[[Ref], Any] = str,
    progress: Progress | None = None,
) -> FrameBrowser:
    """Open the frame browser on a dataset version, with the predictions of its models.

    With a model, the map and "more like this" work on its embeddings. With two, the second is
    compared with the first, slice by slice.

    Args:
        dataset: A whole version that lies in a workspace.
        models: Whose boxes to show; the first sees the frames for the map.
        roles: Only frames of these roles; all by default.
        embeddings: Whether to embed the frames, which takes a while the first time.
        keep: Makes what `FrameBrowser.selection` returns from a selection's reference.
        progress: Called with the number of frames done and their total, for each pass.

    Raises:
        ParameterError: Part of a version, or two models of one name.
    """
    if dataset.ref is None or dataset.workspace is None:
        raise ParameterError(
            "exploring needs a whole dataset version",
            where=dataset.name,
            hint="Pass it as `ws.dataset(...)` returns it, and choose frames by `roles=[...]`",
        )
    if len({model.name for model in models}) < len(models):
        raise ParameterError(
            "two models have one name", where=models[0].name, hint="Pass `name=` to `ws.model`"
        )
    shown = dataset.role(*roles) if roles else dataset
    found = {model.name: model.predict(shown, progress=progress) for model in models}
    exploration = _Exploration(dataset, shown, models, found)
    seen = None
    if models and embeddings:
        seen = curation.embed(dataset.workspace, models[0].torch_predictor, shown.frames, progress)
    return exploration.browser(seen, keep)


class _Exploration:
    """What the browser's callbacks share."""

    def __init__(
        self,
        dataset: Dataset,
        shown: Dataset,
        models: Sequence[Model],
        found: dict[str, Predictions],
    ) -> None:
        assert dataset.ref and dataset.workspace  # noqa: S101 - checked by `explore`
        self.ref, self.workspace = dataset.ref, dataset.workspace
        self.dataset, self.shown, self.models, self.found = dataset, shown, models, found
        self.store = Store(self.workspace)
        self.checkpoint = models[0].checkpoint if models else None
        self.searches: list[curation.SteeredSearch] = []

    def browser(self, seen: curation.Embeddings | None, keep: Callable[[Ref], Any]) -> FrameBrowser:
        boxes = {name: found.above(_LOWEST_SCORE) for name, found in self.found.items()}
        frames = dataset_frames(self.workspace, self.shown, boxes)
        points = None
        if seen is not None:
            points = self._points(frames, seen)
            self.embedded = embedded_frames(self.workspace, self.shown, seen)
            self.seen = seen

        def select(chosen: tuple[str, ...], reason: str) -> Any:
            made = curation.select_manually(self.store, self.ref, chosen, reason, self.checkpoint)
            return keep(made)

        stand_in = Selection(
            dataset=self.ref,
            model=self.checkpoint,
            budget=0,
            seed=0,
            method="manual",
            chosen=(),
        )
        actions: dict[str, FrameAction] = {
            "Keep as a selection": self._keep,
            "Open in FiftyOne": self._open_in_fiftyone,
        }
        if self.models:
            actions["Mine more like these"] = self._mine
            actions["Add to incidents"] = AskingAction(
                self._add_incident,
                {"name": "Name, such as night-cyclist-17", "why": "What happened, in a sentence"},
            )
        return FrameBrowser(
            frames,
            workspace=self.workspace,
            on_tag=self._tag,
            on_send=send_action(self.workspace, stand_in),
            actions=actions,
            extras=BrowserExtras(
                points=points,
                search=None if seen is None else self._search,
                refine=None if seen is None else self._refine,
                explain=self._explain if self.models else None,
                nearest=self._nearest if self.models and seen is not None else None,
                comparison=self._comparison() if len(self.models) > 1 else (),
                select=select,
            ),
        )

    def _points(
        self, frames: Sequence[ShownFrame], seen: curation.Embeddings
    ) -> NDArray[np.float32]:
        """Principal components; frames without an embedding lie in the middle."""
        rows = {name: row for row, name in enumerate(seen.frames)}
        known = principal_components(unit_vectors(seen.vectors))
        points = np.zeros((len(frames), 2), np.float32)
        for at, one in enumerate(frames):
            if (row := rows.get(one.frame)) is not None:
                points[at] = known[row]
        return points

    def _search(self, frame: str, drawn: DrawnBox | None) -> list[ShownFrame]:
        box = _xywh(drawn.xyxy) if drawn else None
        self.searches = [curation.SteeredSearch(self.seen, [curation.Exemplar(frame, box)])]
        return similar_frames(self.embedded, self.seen, self.searches[-1].scores, _FOUND)

    def _refine(self, yes: tuple[str, ...], no: tuple[str, ...]) -> list[ShownFrame]:
        if not self.searches:
            raise ParameterError("nothing was searched for", hint="Press l on a frame first")
        scores = self.searches[-1].refit(yes, no)
        return similar_frames(self.embedded, self.seen, scores, _FOUND)

    def _keep(self, frames: tuple[str, ...]) -> str:
        made = curation.select_manually(
            self.store, self.ref, frames, "marked in the frame browser", self.checkpoint
        )
        return f"kept as {made[:22]}; send it with: workbench label send {made[:22]}"

    def _tag(self, frames: tuple[str, ...]) -> object:
        self._publish(frames)
        return tag_action(self.workspace, self.dataset.name, "look-again")(frames)

    def _open_in_fiftyone(self, frames: tuple[str, ...]) -> str:
        name = self._publish(frames)
        session = curation.open_app(name, workspace=self.workspace)
        return f"{counted(len(frames), 'frame')} in FiftyOne: {session.url}"

    def _publish(self, frames: tuple[str, ...]) -> str:
        made = curation.select_manually(
            self.store, self.ref, frames, "marked in the frame browser", self.checkpoint
        )
        selection = self.store.get(made, Selection)
        if not curation.is_published(self.workspace, selection, self.dataset.name):
            boxes = next(iter(self.found.values())).above() if self.found else ()
            curation.publish(self.workspace, self.shown, boxes, selection, self.dataset.name)
        return self.dataset.name

    def _mine(self, frames: tuple[str, ...]) -> str:
        """Frames of the pool like the marked ones, as a selection."""
        pool = {frame.id for frame in self.dataset.frames if frame.role == Role.POOL}
        if outside := [frame for frame in frames if frame not in pool]:
            raise ParameterError(
                f"{counted(len(outside), 'marked frame')} not in the pool",
                where=outside[0][:12],
                hint="Mark frames of role pool: only these are searched",
            )
        like = tuple(curation.Exemplar(frame) for frame in frames)
        made = curation.mine(
            self.store,
            self.ref,
            self.checkpoint,
            _MINED,
            query=curation.MiningQuery(like=like),
        )
        chosen = self.store.get(made, Selection).chosen
        return f"{counted(len(chosen), 'frame')} mined: {made[:22]}"

    def _add_incident(
        self,
        frames: tuple[str, ...],
        *,
        name: str,
        why: str,
        model: str = "",
        score: float | None = None,
    ) -> str:
        """What a model misses on the marked frames at a score, as a regression case."""
        part = self.shown.where(lambda one: one.id in frames)
        model = model or self.models[0].name
        score = self.found[model].threshold if score is None else score
        boxes = [one for one in self.found[model].above(score) if one.frame in frames]
        missed = missed_labels([label for label in part.labels if not label.ignore], boxes)
        if not missed:
            raise ParameterError(
                f"{model} misses nothing on {counted(len(frames), 'marked frame')} at {score:g}",
                hint="Mark frames with misses, or raise the score",
            )
        by = getpass.getuser()
        incidents.add_incident(self.store, name, self.dataset, missed, why=why, by=by)
        return f"{name}: {counted(len(missed), 'object')}; every candidate has to find them now"

    def _explain(self, frame: str, model: str, score: float) -> list[ExplainedMiss]:
        part = self.shown.where(lambda one: one.id == frame)
        boxes = [one for one in self.found[model] if one.frame == frame]
        settings = EvaluationSettings(threshold=score, resamples=100)
        evaluation = evaluate(Predictions(part, boxes, model), [ALL_FRAMES], settings=settings)
        others = [
            one
            for name, found in self.found.items()
            if name != model
            for one in found.by_frame[frame]
        ]
        misses = explain_misses(worst_frames(evaluation, 1), boxes, threshold=score, other=others)
        return [ExplainedMiss(one.label.cls, one.label.box.xyxy, one.why) for one in misses]

    @cached_property
    def _training(self) -> tuple[tuple[Label, ...], NDArray[np.float32], NDArray[np.float32]]:
        """Labels to learn from, the unit vector of what lies in each box, and their centre."""
        part = self.dataset.role(*_TRAINING_ROLES)
        seen = curation.embed(self.workspace, self.models[0].torch_predictor, part.frames)
        embedded = set(seen.frames)
        labels, vectors = [], []
        for label in part.labels:
            if label.ignore or label.frame not in embedded:
                continue
            exemplar = curation.Exemplar(label.frame, _xywh(label.box.xyxy))
            with contextlib.suppress(ParameterError):  # a box without extent
                vectors.append(region_vector(seen, exemplar))
                labels.append(label)
        width = len(vectors[0]) if vectors else 1
        found = np.array(vectors, np.float32).reshape(-1, width)
        centre = found.mean(axis=0) if len(found) else np.zeros(width, np.float32)
        return tuple(labels), unit_vectors(found, centre), centre

    def _nearest(self, frame: str, drawn: DrawnBox) -> list[str]:
        """The training objects that look most like a label, with their class and annotator."""
        labels, known, centre = self._training
        cls = drawn.cls.replace("_", " ")
        count = sum(label.cls == drawn.cls for label in labels)
        lines = [f"training has {count:,} of class {cls}"]
        if not labels:
            return lines
        vector = region_vector(self.seen, curation.Exemplar(frame, _xywh(drawn.xyxy)))
        likeness = (unit_vectors(vector[None], centre) @ known.T)[0]
        drives: set[str] = set()
        for row in np.argsort(-likeness, kind="stable").tolist():
            label = labels[row]
            drive = self._drive_of[label.frame]
            if drive in drives or label.frame == frame:
                continue
            drives.add(drive)
            name = label.cls.replace("_", " ")
            lines.append(f"{likeness[row]:.2f} alike: {name}, by {label.annotator}, {drive}")
            if len(drives) == _NEAREST:
                break
        return lines

    @cached_property
    def _drive_of(self) -> dict[str, str]:
        return {frame.id: frame.drive for frame in self.dataset.frames}

    def _comparison(self) -> tuple[SliceChange, ...]:
        first, second, *_ = (
            evaluate(self.found[model.name], STANDARD_SLICES) for model in self.models[:2]
        )
        comparison = Comparison(first, second)
        rows = []
        for row in first.metrics.rows:
            if row.cls != ALL_CLASSES or not row.boxes:
                continue
            change = comparison.difference("recall", row.slice).estimate
            after = second.metrics.at(row.slice).recall.value
            ends = [
                value
                for value in (row.recall.value, after, change.value, change.low, change.high)
                if value is not None
            ]
            if len(ends) == 5:
                rows.append(SliceChange(row.slice, row.boxes, *ends))
        return tuple(rows)


def _xywh(xyxy: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = xyxy
    return x1, y1, x2 - x1, y2 - y1
