"""Frames for training: decoded once, kept as bytes at network size, varied as they are used.

What a frame looks like in a step depends on the seed, the step and its place in the batch alone,
never on which thread was first, so a training can be stopped and taken up at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench.perception.preprocessing import (
    Pixels,
    Placement,
    Preprocessing,
    fit,
    load_rgb,
    normalise,
    placement_of,
)
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame
from workbench.training.config import Augmentation, TrainingConfig
from workbench.training.targets import Targets, of_frame
from workbench.workspace import Workspace

_MIB = 1 << 20
_READ_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """``images`` float32 ``[n, 3, height, width]`` as the network takes them."""

    images: NDArray[np.float32]
    targets: list[Targets]


class Loader:
    """Gives the batch of any step.

    Args:
        place: Where the images lie.
        dataset: The frames to learn from.
        classes: In the order of the model's numbers.
    """

    def __init__(
        self,
        place: Workspace,
        dataset: Dataset,
        config: TrainingConfig,
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._place = place
        self._frames = dataset.frames
        self._labels = dataset.labels_by_frame
        self._classes = tuple(classes)
        self._config = config
        self._spec = preprocessing
        size = len(self._frames) * preprocessing.width * preprocessing.height * 3
        self._kept: list[tuple[Pixels, Targets]] | None = None
        if size <= config.memory_mib * _MIB:
            with ThreadPoolExecutor(config.threads, thread_name_prefix="decode") as pool:
                self._kept = []
                for done, pair in enumerate(pool.map(self._read, self._frames), start=1):
                    self._kept.append(pair)
                    if progress:
                        progress(done, len(self._frames))

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    def targets(self) -> Iterator[Targets]:
        """Targets of every frame as labelled, without variation and without decoding anything."""
        for frame in self._frames:
            yield self._targets(frame, placement_of(frame.width, frame.height, self._spec))

    def batch(self, step: int) -> Batch:
        """The batch of a step, always the same."""
        images, targets = [], []
        for slot, index in enumerate(self._indices(step)):
            rng = np.random.default_rng([self._config.seed, step, slot])
            pixels, found = self._frame(index)
            pixels, found = vary(pixels, found, self._config.augment, self._spec.pad, rng)
            images.append(pixels)
            targets.append(found)
        return Batch(normalise(np.stack(images), self._spec), targets)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of steps ``first`` up to ``last``, prepared ahead in a thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            waiting = [
                pool.submit(self.batch, step)
                for step in range(first, min(first + _READ_AHEAD, last))
            ]
            for step in range(first, last):
                ready = waiting.pop(0)
                if step + _READ_AHEAD < last:
                    waiting.append(pool.submit(self.batch, step + _READ_AHEAD))
                yield ready.result()

    def _indices(self, step: int) -> list[int]:
        """Every frame once a pass, in the order of that pass; the last batch is filled up."""
        count, batch = len(self._frames), self._config.batch
        per_pass = self._config.steps_per_epoch(count)
        number, within = divmod(step, per_pass)
        order = np.random.default_rng([self._config.seed, number, 1 << 30]).permutation(count)
        order = np.resize(order, per_pass * batch)
        return [int(index) for index in order[within * batch : (within + 1) * batch]]

    def _frame(self, index: int) -> tuple[Pixels, Targets]:
        return self._read(self._frames[index]) if self._kept is None else self._kept[index]

    def _read(self, frame: Frame) -> tuple[Pixels, Targets]:
        pixels, placement = fit(load_rgb(media_path(self._place, frame)), self._spec)
        return pixels, self._targets(frame, placement)

    def _targets(self, frame: Frame, placement: Placement) -> Targets:
        return of_frame(self._labels[frame.id], self._classes, placement)


def vary(
    pixels: Pixels, targets: Targets, how: Augmentation, pad: int, rng: np.random.Generator
) -> tuple[Pixels, Targets]:
    """One random variation of a frame: mirrored, zoomed, moved, and in other light."""
    draw = rng.random(9)  # always as many, so that one setting never changes another's draws
    pixels, targets = _move(pixels, targets, how, pad, draw[:4])
    table = _light_table(how, draw[4:])
    if table is not None:
        pixels = np.array(Image.fromarray(pixels).point(table.ravel().tolist()))
    return pixels, targets


def _move(
    pixels: Pixels, targets: Targets, how: Augmentation, pad: int, draw: NDArray[np.float64]
) -> tuple[Pixels, Targets]:
    height, width = pixels.shape[:2]
    low, high = np.log(how.zoom)
    zoom = float(np.exp(low + (high - low) * draw[1]))
    mirror = -1.0 if draw[0] < how.flip else 1.0
    reach = how.shift + max(0.0, zoom - 1) / 2  # a zoomed picture may show any part of itself
    shift_x, shift_y = (2 * draw[2:4] - 1) * reach * np.array([width, height])
    if zoom == 1 and shift_x == 0 and shift_y == 0 and mirror == 1:
        return pixels.copy(), targets
    scale_x = mirror * zoom
    left = width / 2 - scale_x * width / 2 + shift_x
    top = height / 2 - zoom * height / 2 + shift_y
    # OpenCV counts from the centre of the first pixel, boxes from its corner.
    there = np.array(
        [[scale_x, 0, left + (scale_x - 1) / 2], [0, zoom, top + (zoom - 1) / 2]], np.float64
    )
    moved = cv2.warpAffine(
        pixels, there, (width, height), flags=cv2.INTER_LINEAR, borderValue=(pad, pad, pad)
    )
    xs = targets.boxes[:, 0::2] * scale_x + left
    ys = targets.boxes[:, 1::2] * zoom + top
    xs.sort(axis=1)
    boxes = np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], axis=1)
    return np.asarray(moved, np.uint8), targets.moved(boxes, width, height)


def _light_table(how: Augmentation, draw: NDArray[np.float64]) -> NDArray[np.uint8] | None:
    """New value of each of the 256 old ones, by channel ``[3, 256]``."""
    if how.brightness == 0 and how.colour == 0 and how.gamma == 1:
        return None
    signed = 2 * draw - 1
    gain = (1 + how.brightness * signed[0]) * (1 + how.colour * signed[1:4])
    curve = np.linspace(0, 1, 256) ** (how.gamma ** signed[4])
    bent = np.clip(255 * gain[:, None] * curve[None], 0, 255).round()
    return np.asarray(bent, np.uint8)
