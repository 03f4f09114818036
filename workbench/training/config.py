"""What shapes a training, and nothing that does not: equal configurations give equal weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from workbench.errors import ParameterError


@dataclass(frozen=True)
class Augmentation:
    """How far a frame is varied each time it is seen.

    Args:
        flip: Chance of mirroring left and right.
        zoom: Smallest and largest factor of size, drawn evenly on a logarithmic scale.
        shift: Largest move, as a share of width and height.
        brightness: Largest factor of gain, up or down, such as 0.4 for 0.6 to 1.4.
        gamma: Largest exponent; also its inverse.
        colour: Largest change of one channel's gain against the others.
    """

    flip: float = 0.5
    zoom: tuple[float, float] = (0.9, 1.3)
    shift: float = 0.05
    brightness: float = 0.25
    gamma: float = 1.3
    colour: float = 0.08

    @classmethod
    def none(cls) -> Augmentation:
        """Every frame as it is."""
        return cls(flip=0, zoom=(1, 1), shift=0, brightness=0, gamma=1, colour=0)


@dataclass(frozen=True)
class TrainingConfig:
    """One training.

    Args:
        steps: Optimiser steps. The default takes the same time however many frames there are,
            which also makes two trainings on different data comparable.
        epochs: Passes over the frames instead of ``steps``, when given.
        batch: Frames a step. Small, because in minutes many small steps learn more than few large.
        lr: Highest learning rate of the one-cycle schedule (Smith 2018).
        warmup: Share of the steps in which the rate rises.
        ema: Decay of the average of the weights that is kept.
        width: Of the detector, see `DetectorConfig`.
        seed: Of everything random.
        threads: Of torch. Weights repeat to the bit at the same number only.
        memory_mib: Decoded frames are kept in memory up to this; above, each is decoded when
            it is needed.
    """

    steps: int = 650
    epochs: int | None = None
    batch: int = 8
    lr: float = 3e-3
    weight_decay: float = 0.03
    warmup: float = 0.1
    ema: float = 0.99
    clip_norm: float = 10.0
    width: float = 1.0
    seed: int = 0
    threads: int = 2
    memory_mib: int = 1024
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "lr", "width", "threads", "clip_norm", "memory_mib")
        for name in positive:
            if getattr(self, name) <= 0:
                _refuse(name, getattr(self, name), "must be above zero")
        if self.epochs is not None and self.epochs <= 0:
            _refuse("epochs", self.epochs, "must be above zero")
        for name in ("warmup", "ema", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                _refuse(name, getattr(self, name), "must lie in [0, 1)")
        if self.seed < 0:
            _refuse("seed", self.seed, "must not be negative")
        low, high = self.augment.zoom
        if not 0 < low <= high:
            _refuse("augment.zoom", self.augment.zoom, "must be 0 < smallest <= largest")

    def steps_for(self, frames: int) -> int:
        """Optimiser steps over ``frames`` frames."""
        if self.epochs is None:
            return self.steps
        return self.epochs * self.steps_per_epoch(frames)

    def steps_per_epoch(self, frames: int) -> int:
        return math.ceil(frames / self.batch)

    def rate(self, step: int, total: int) -> float:
        """Learning rate of a step: cosine up to ``lr``, cosine down to almost nothing."""
        rise = max(1, round(self.warmup * total))
        if step < rise:
            return self.lr * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * (step + 1) / rise)))
        share = (step + 1 - rise) / max(1, total - rise)
        return self.lr * (0.002 + 0.998 * 0.5 * (1 + math.cos(math.pi * share)))

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint records: plain JSON values."""
        values = asdict(self)
        values["augment"]["zoom"] = list(self.augment.zoom)
        del values["memory_mib"]  # where pixels wait does not shape the weights
        return values


def _refuse(name: str, value: object, rule: str) -> None:
    raise ParameterError(f"{name} is {value}: it {rule}", where=f"TrainingConfig.{name}")
