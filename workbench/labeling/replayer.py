"""Replay: simulated Label Studio users draw known labels with noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core import credentials, digest
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.labeling import regions as geometry
from workbench.labeling.answers import REPLAY_DOMAIN, labelers_needed
from workbench.labeling.collector import fetch_batch
from workbench.labeling.regions import MIN_BOX_PX, DrawnObject, Region, to_regions
from workbench.labeling.server import LabelStudio
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, Label, LabelSchema, Point, RotatedBox
from workbench.records.store import Store
from workbench.records.types import LabelBatch

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class ReplayNoise:
    """How a replayed box differs from the known one: every edge is moved by a normal error.

    Its standard deviation is ``px`` pixels plus ``relative`` times the box's side in that
    direction; boxes stay inside the image and at least a pixel wide and high. Of a turned box the
    edges move across themselves, of a polygon the corners; where that would leave the image or
    cross itself, it is drawn as it is known; upright, where that does too.
    """

    px: float = 0.5
    relative: float = 0.02

    def __str__(self) -> str:
        return f"edges moved by N(0, {self.px} px + {self.relative:.0%} of the side)"


@dataclass(frozen=True)
class ReplayResult:
    """``drawn`` answers were given now, ``already`` had been; ``users`` gave them."""

    drawn: int
    already: int
    users: tuple[str, ...]
    noise: str


def replay(
    place: Workspace,
    server: LabelStudio,
    batch_ref: Ref,
    answers: Dataset,
    *,
    seed: int,
    noise: ReplayNoise = ReplayNoise(),
    users: int = 2,
    progress: ProgressCallback | None = None,
) -> ReplayResult:
    """Let replay users answer every frame of a sent batch that still lacks answers.

    What a user draws on a frame follows from seed, frame and user alone, so neither order nor
    interruptions change it, and repeating it draws nothing.

    Args:
        server: As its administrator, who invites the users.
        answers: A dataset with true labels for every frame of the batch.

    Raises:
        ParameterError: ``answers`` has no true labels, or lacks frames of the batch.
    """
    store = Store(place)
    batch = store.get(batch_ref, LabelBatch)
    truth = _known_labels(batch, answers)
    seen = fetch_batch(place, server, batch_ref)
    by_frame: dict[Digest, set[str]] = {}
    for given in seen.frames():
        by_frame[given.held.frame] = {answer.annotator for answer in given.answers}
    wanted = [
        (frame, user)
        for frame, count in labelers_needed(batch).items()
        for user in _missing_users(frame, count, users, by_frame.get(frame, set()))
    ]
    names = tuple(replay_email(user) for user in range(users))
    if wanted:
        accounts = _sign_in(place, server, sorted({user for _, user in wanted}))
        tasks = server.frames(seen.project.id, digest_of(batch_ref))
        for done, (frame, user) in enumerate(wanted, start=1):
            generator = _random_generator(seed, frame, user)
            known = seen.contents.frame(frame)
            result = draw_labels(truth[frame], known, noise, generator, batch.label_schema)
            accounts[user].annotate(tasks[frame], result)
            if progress:
                progress(done, len(wanted))
    total = sum(labelers_needed(batch).values())
    return ReplayResult(len(wanted), total - len(wanted), names, str(noise))


def replay_email(user: int) -> str:
    """Address of the replay user with this number, counted from 0."""
    return f"replay-{user + 1}@{REPLAY_DOMAIN}"


def draw_labels(
    labels: tuple[Label, ...],
    frame: Frame,
    noise: ReplayNoise,
    generator: np.random.Generator,
    schema: LabelSchema,
) -> list[Region]:
    """What is known of a frame with the stated noise, as regions.

    Args:
        schema: What can be drawn and said: turned boxes and polygons become upright ones where it
            has no such shapes.
    """
    questions = {question.name for question in schema.box_questions}
    regions: list[Region] = []
    # In an order of their own, so that equal labels get equal noise however they were listed.
    for number, label in enumerate(sorted(labels, key=lambda each: each.id)):
        box, turned, polygon = _noisy_shape(label, frame, noise, generator, schema)
        drawn = DrawnObject(
            region=f"replay-{number}",
            cls=label.cls,
            box=box,
            occluded=label.occluded,
            truncated=label.truncated,
            ignore=label.ignore,
            turned=turned,
            polygon=polygon,
            track=label.track if schema.tracks else None,
            attributes={key: said for key, said in label.attributes.items() if key in questions},
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
            if _inside_image(polygon, frame) and not geometry.crosses_itself(polygon):
                return geometry.enclosing_box(polygon), None, polygon
    if label.turned is not None and "turned" in schema.shapes:
        for turned in (_noisy_turned(label.turned, noise, generator), label.turned):
            corners = geometry.turned_corners(turned)
            if _inside_image(corners, frame):
                return geometry.enclosing_box(corners), turned, None
    return _noisy_box(label.box, frame, noise, generator), None, None


def _noisy_turned(
    turned: RotatedBox, noise: ReplayNoise, generator: np.random.Generator
) -> RotatedBox:
    """Its four edges moved across themselves; the angle stays."""
    half = np.array([turned.w, turned.h]) / 2
    spread = noise.px + noise.relative * 2 * half
    low = -half + generator.normal(size=2) * spread
    high = np.maximum(half + generator.normal(size=2) * spread, low + MIN_BOX_PX)
    (x, y), (w, h) = (low + high) / 2, high - low
    angle = np.radians(turned.degrees)
    return RotatedBox(
        cx=float(turned.cx + x * np.cos(angle) - y * np.sin(angle)),
        cy=float(turned.cy + x * np.sin(angle) + y * np.cos(angle)),
        w=float(w),
        h=float(h),
        degrees=turned.degrees,
    )


def _inside_image(points: Sequence[Point], frame: Frame) -> bool:
    return all(0 <= x <= frame.width and 0 <= y <= frame.height for x, y in points)


def _known_labels(batch: LabelBatch, answers: Dataset) -> Mapping[Digest, tuple[Label, ...]]:
    true = [label for label in answers.labels if label.origin.is_ground_truth]
    if not true:
        raise ParameterError(
            "replay needs known boxes, and this dataset has none",
            where=answers.ref or answers.name,
            hint="Use labelers=people, or give a dataset that is labeled",
        )
    known: dict[Digest, tuple[Label, ...]] = {frame.id: () for frame in answers.frames}
    for label in true:
        known[label.frame] = (*known[label.frame], label)
    strangers = [frame for frame in batch.frames if frame not in known]
    if strangers:
        raise ParameterError(
            f"replay knows nothing of {len(strangers)} frames of the batch",
            where=answers.ref or answers.name,
            hint="Give the dataset that the batch was selected from, with its labels",
        )
    return known


def _missing_users(frame: Digest, count: int, users: int, present: set[str]) -> list[int]:
    """Numbers of the users who still have to answer a frame; the first follows from its digest."""
    first = int(frame[:8], 16) % users
    order = [(first + step) % users for step in range(users)]
    lacking = [user for user in order if replay_email(user) not in present]
    return lacking[: max(0, count - len(present))]


def _sign_in(place: Workspace, server: LabelStudio, users: list[int]) -> dict[int, LabelStudio]:
    signed_in = {}
    for user in users:
        name = f"label-studio-replay-{user + 1}"
        password = credentials.ensure_secret(place, f"{name}-password")
        token_file = place.secrets / f"{name}-token"
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
