"""Replay: simulated Label Studio users submit known labels with noise.

Stands in for labelers in a first run and in tests. Users, server and calls are real; the boxes are
the known ones with seeded noise. The collected labels have origin ``replayed``, and their working
time does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core import credentials, digest
from workbench.core.errors import ParameterError
from workbench.core.text import counted, short_repr
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.labeling.answers import REPLAY_DOMAIN, labelers_needed
from workbench.labeling.collector import fetch_batch
from workbench.labeling.regions import (
    MIN_BOX_PX,
    DrawnObject,
    Region,
    crosses_itself,
    enclosing_box,
    rotated_corners,
    to_regions,
)
from workbench.labeling.server import LabelStudio
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, Label, LabelSchema, Point, RotatedBox
from workbench.records.types import LabelBatch

__all__ = ["replay"]


@dataclass(frozen=True)
class ReplayNoise:
    """Normally distributed error of every edge of a box.

    Boxes stay inside the image and at least one pixel wide and high. Of a rotated box the edges
    move, of a polygon the corners. If that leaves the image or the polygon crosses itself, the
    exact shape is used; if that does too, the upright box.

    Attributes:
        px: Constant part of the standard deviation, in pixels.
        relative: Part proportional to the box's side in that direction.
    """

    px: float = 0.5
    relative: float = 0.02

    def __str__(self) -> str:
        return f"edges moved by N(0, {self.px} px + {self.relative:.0%} of the side)"


@short_repr
@dataclass(frozen=True)
class ReplayResult:
    """Result of `replay`.

    Attributes:
        drawn: Number of answers submitted now.
        already: Number of answers that existed before.
        users: E-mail addresses of the replay users.
    """

    drawn: int
    already: int
    users: tuple[str, ...]
    noise: str


def replay(
    workspace: Workspace,
    server: LabelStudio,
    batch_ref: Ref,
    answers: Dataset,
    *,
    seed: int,
    noise: ReplayNoise = ReplayNoise(),
    users: int = 2,
    progress: Progress | None = None,
) -> ReplayResult:
    """Let replay users answer every frame of a sent batch that still needs answers.

    An answer depends only on seed, frame and user: it is the same in any order and after any
    interruption.

    Args:
        server: As its administrator, who invites the users.
        answers: Dataset with ground-truth labels for every frame of the batch.
        users: Number of replay users.

    Raises:
        ParameterError: ``answers`` has no ground-truth labels, or lacks frames of the batch.
    """
    view = fetch_batch(workspace, server, batch_ref)
    batch = view.contents.batch
    truth = _known_labels(batch, answers)
    present = {
        frame.cached.frame: {answer.annotator for answer in frame.answers}
        for frame in view.frames()
    }
    needed = labelers_needed(batch)
    missing = [
        (frame, user)
        for frame, count in needed.items()
        for user in _missing_users(frame, count, users, present.get(frame, set()))
    ]
    if missing:
        accounts = _sign_in(workspace, server, sorted({user for _, user in missing}))
        tasks = server.task_by_frame(view.project.id, digest_of(batch_ref))
        for done, (frame, user) in enumerate(missing, start=1):
            generator = _random_generator(seed, frame, user)
            result = draw_labels(
                truth[frame], view.contents.frame(frame), noise, generator, batch.label_schema
            )
            accounts[user].annotate(tasks[frame], result)
            if progress:
                progress(done, len(missing))
    emails = tuple(replay_email(user) for user in range(users))
    return ReplayResult(len(missing), sum(needed.values()) - len(missing), emails, str(noise))


def replay_email(user: int) -> str:
    """E-mail address of a replay user, numbered from 0."""
    return f"replay-{user + 1}@{REPLAY_DOMAIN}"


def draw_labels(
    labels: tuple[Label, ...],
    frame: Frame,
    noise: ReplayNoise,
    generator: np.random.Generator,
    schema: LabelSchema,
) -> list[Region]:
    """Labels of a frame with noise, as regions.

    Args:
        schema: Rotated boxes and polygons become upright boxes if it does not allow them.
    """
    questions = {question.name for question in schema.box_questions}
    regions: list[Region] = []
    # Sorted, so that the noise of a label does not depend on the order of the labels.
    for number, label in enumerate(sorted(labels, key=lambda each: each.id)):
        box, rotated, polygon = _noisy_shape(label, frame, noise, generator, schema)
        drawn = DrawnObject(
            region=f"replay-{number}",
            cls=label.cls,
            box=box,
            occluded=label.occluded,
            truncated=label.truncated,
            ignore=label.ignore,
            turned=rotated,
            polygon=polygon,
            track=label.track if schema.tracks else None,
            attributes={name: one for name, one in label.attributes.items() if name in questions},
        )
        regions += to_regions(drawn, frame.width, frame.height)
    return regions


def _noisy_shape(
    label: Label,
    frame: Frame,
    noise: ReplayNoise,
    generator: np.random.Generator,
    schema: LabelSchema,
) -> tuple[Box, RotatedBox | None, tuple[Point, ...] | None]:
    if label.polygon is not None and "polygon" in schema.shapes:
        spread = noise.px + noise.relative * np.array([label.box.w, label.box.h])
        points = np.array(label.polygon)
        moved = points + generator.normal(size=points.shape) * spread
        for polygon in (tuple((float(x), float(y)) for x, y in moved), label.polygon):
            if _inside_image(polygon, frame) and not crosses_itself(polygon):
                return enclosing_box(polygon), None, polygon
    if label.turned is not None and "turned" in schema.shapes:
        for rotated in (_noisy_rotation(label.turned, noise, generator), label.turned):
            corners = rotated_corners(rotated)
            if _inside_image(corners, frame):
                return enclosing_box(corners), rotated, None
    return _noisy_box(label.box, frame, noise, generator), None, None


def _noisy_rotation(
    rotated: RotatedBox, noise: ReplayNoise, generator: np.random.Generator
) -> RotatedBox:
    """The box with its four edges moved; the angle stays."""
    half = np.array([rotated.w, rotated.h]) / 2
    spread = noise.px + noise.relative * 2 * half
    low = -half + generator.normal(size=2) * spread
    high = np.maximum(half + generator.normal(size=2) * spread, low + MIN_BOX_PX)
    (x, y), (w, h) = (low + high) / 2, high - low
    angle = np.radians(rotated.degrees)
    return RotatedBox(
        cx=float(rotated.cx + x * np.cos(angle) - y * np.sin(angle)),
        cy=float(rotated.cy + x * np.sin(angle) + y * np.cos(angle)),
        w=float(w),
        h=float(h),
        degrees=rotated.degrees,
    )


def _inside_image(points: Sequence[Point], frame: Frame) -> bool:
    return all(0 <= x <= frame.width and 0 <= y <= frame.height for x, y in points)


def _known_labels(batch: LabelBatch, answers: Dataset) -> Mapping[Digest, tuple[Label, ...]]:
    truth = [label for label in answers.labels if label.origin.is_ground_truth]
    if not truth:
        raise ParameterError(
            "the dataset to replay has no ground-truth labels",
            where=answers.ref or answers.name,
            hint="Use labelers=people, or a labeled dataset",
        )
    known: dict[Digest, tuple[Label, ...]] = {frame.id: () for frame in answers.frames}
    for label in truth:
        known[label.frame] = (*known[label.frame], label)
    unknown = [frame for frame in batch.frames if frame not in known]
    if unknown:
        raise ParameterError(
            f"{counted(len(unknown), 'frame')} of the batch not in the dataset to replay",
            where=answers.ref or answers.name,
            hint="Use the dataset that the batch was selected from, with its labels",
        )
    return known


def _missing_users(frame: Digest, count: int, users: int, present: set[str]) -> list[int]:
    """Users who still have to answer a frame; the first one depends on its digest."""
    first = int(frame[:8], 16) % users
    order = [(first + step) % users for step in range(users)]
    missing = [user for user in order if replay_email(user) not in present]
    return missing[: max(0, count - len(present))]


def _sign_in(workspace: Workspace, server: LabelStudio, users: list[int]) -> dict[int, LabelStudio]:
    signed_in = {}
    for user in users:
        name = f"label-studio-replay-{user + 1}"
        password = credentials.ensure_secret(workspace, f"{name}-password")
        token_file = workspace.secrets / f"{name}-token"
        signed_in[user] = server.as_user(replay_email(user), password, token_file=token_file)
    return signed_in


def _random_generator(seed: int, frame: Digest, user: int) -> np.random.Generator:
    entropy = digest.of_json({"seed": seed, "frame": frame, "user": user})
    return np.random.default_rng(int(entropy, 16))


def _noisy_box(box: Box, frame: Frame, noise: ReplayNoise, generator: np.random.Generator) -> Box:
    spread = noise.px + noise.relative * np.array([box.w, box.h, box.w, box.h])
    edges = np.array(box.xyxy) + generator.normal(size=4) * spread
    x1, x2 = _noisy_edge(edges[[0, 2]], frame.width)
    y1, y2 = _noisy_edge(edges[[1, 3]], frame.height)
    return Box(x=x1, y=y1, w=x2 - x1, h=y2 - y1)


def _noisy_edge(ends: NDArray[np.float64], limit: int) -> tuple[float, float]:
    low = float(np.clip(ends.min(), 0, limit - MIN_BOX_PX))
    high = float(np.clip(ends.max(), low + MIN_BOX_PX, limit))
    return low, high
