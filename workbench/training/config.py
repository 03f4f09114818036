"""Training configuration: equal configurations give equal weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from workbench.core.errors import ParameterError

Precision = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["one-cycle", "cosine"]

_MODEL_SIZES = {"nano": (0.5, 1), "small": (1.0, 1), "medium": (1.5, 2)}
_FINAL_LR_SHARE = {"one-cycle": 0.002, "cosine": 0.01}
_RUNTIME_ONLY = ("memory_mib", "limit_mib", "keep_minutes")  # where pixels wait, when state is kept
_ORIGINAL_FIELDS = ("steps", "epochs", "batch", "lr", "warmup", "ema", "weight_decay", "clip_norm")
_ALWAYS_RECORDED = (*_ORIGINAL_FIELDS, "width", "seed", "threads", "augment")
"""Fields that every checkpoint has named from the first; a younger one is named where it is used,
so that trainings which do without it keep their names."""
_PROBABILITIES = ("flip", "mosaic", "fog", "rain", "night", "noise", "blur")


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
        mosaic: Chance of a picture put together from four frames (Bochkovskiy et al. 2020).
        fog: Chance of haze that grows towards the horizon.
        rain: Chance of streaks and of less contrast.
        night: Chance of low light: gain down, colours paler, sensor noise up.
        noise: Chance of sensor noise (shot and read noise).
        blur: Chance of blur, by motion or by focus.
    """

    flip: float = 0.5
    zoom: tuple[float, float] = (0.9, 1.3)
    shift: float = 0.05
    brightness: float = 0.25
    gamma: float = 1.3
    colour: float = 0.08
    mosaic: float = 0.0
    fog: float = 0.0
    rain: float = 0.0
    night: float = 0.0
    noise: float = 0.0
    blur: float = 0.0

    @classmethod
    def none(cls) -> Augmentation:
        """Every frame as it is."""
        return cls(flip=0, zoom=(1, 1), shift=0, brightness=0, gamma=1, colour=0)

    @classmethod
    def driving(cls) -> Augmentation:
        """What cameras behind windscreens meet: weather, darkness and noise beside light."""
        return cls(mosaic=0.2, fog=0.08, rain=0.08, night=0.1, noise=0.15, blur=0.08)


@dataclass(frozen=True)
class Sampling:
    """Rare frames are seen more often: repeat-factor sampling (Gupta et al., LVIS, 2019).

    A class or slice in a share ``f`` of the frames, less than ``rare``, has the factor
    ``(rare / f) ** power``, at most ``cap``; a frame has the largest factor of all it holds. A pass
    has as many frames as without, so what is rare takes the places of what is common.

    Args:
        classes: Power for classes; 0 leaves them alone, 0.5 is LVIS's.
        slices: Power for slices: light, weather, road works, events.
    """

    classes: float = 0.0
    slices: float = 0.0
    rare: float = 0.3
    cap: float = 4.0

    @property
    def used(self) -> bool:
        return self.classes > 0 or self.slices > 0


@dataclass(frozen=True)
class LabelTrust:
    """How much a label weighs in the loss, by where it comes from; 1 is fully.

    Args:
        replayed: Drawn by the replay of known boxes with noise.
        accepted: A model's box that a person let stand.
        disputed: On a frame about which labelers disagreed and nobody has decided.
    """

    replayed: float = 1.0
    accepted: float = 1.0
    disputed: float = 1.0


@dataclass(frozen=True)
class EarlyStopping:
    """When to look at frames that are not learned from, and when that ends the training.

    Args:
        every: Steps between two looks; 0 never looks but at the end.
        patience: Looks without a better value of ``figure`` after which the training ends, and
            the best weights are the result; 0 never ends early.
        figure: The name of the watched value that decides, larger is better.
        least: Smallest gain that counts as better.
        forget: Largest loss of any watched value against the model that it started from; more
            ends the training with the last weights that kept to it. None lets it forget.
    """

    every: int = 0
    patience: int = 0
    figure: str = "all"
    least: float = 0.0
    forget: float | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """One training.

    Args:
        steps: Optimiser steps. The default takes the same time however many frames there are,
            which also makes two trainings on different data comparable.
        epochs: Passes over the frames instead of ``steps``, when given.
        batch: Frames a step. Small, because in minutes many small steps learn more than few large.
        lr: Highest learning rate of the schedule.
        warmup: Share of the steps in which the rate rises.
        ema: Decay of the average of the weights that is kept.
        width: Of the compact detector, see `DetectorConfig`; so ``depth``.
        seed: Of everything random.
        threads: Of torch. Weights repeat to the bit at the same number only.
        schedule: ``one-cycle`` (Smith 2018) or linear warm-up and ``cosine``.
        accumulate: Parts into which a step's frames are cut; each goes through the network alone,
            so that a large batch fits a small memory.
        precision: Of the network's forward and backward pass; weights stay float32.
        processes: That share a step's frames among them.
        device: ``cpu`` or ``cuda``.
        replay: Share of each pass taken from old frames when fine-tuning on mined ones.
        memory_mib: Decoded frames are kept in memory up to this; above, each is decoded when
            it is needed.
        limit_mib: Memory that the process may take at most; None for no limit.
        keep_minutes: State is kept after each pass, and so often within one.
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
    depth: int = 1
    schedule: Schedule = "one-cycle"
    accumulate: int = 1
    precision: Precision = "float32"
    processes: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    replay: float = 0.0
    limit_mib: int | None = None
    keep_minutes: float = 5.0
    sampling: Sampling = field(default_factory=Sampling)
    trust: LabelTrust = field(default_factory=LabelTrust)
    stopping: EarlyStopping = field(default_factory=EarlyStopping)

    def __post_init__(self) -> None:
        _require_positive(
            self, "steps", "batch", "lr", "width", "depth", "threads", "clip_norm", "memory_mib",
            "accumulate", "processes", "keep_minutes",
        )  # fmt: skip
        for name in ("epochs", "limit_mib"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        for name in ("warmup", "ema", "weight_decay", "replay"):
            if not 0 <= getattr(self, name) < 1:
                _invalid(name, getattr(self, name), "must lie in [0, 1)")
        if self.seed < 0:
            _invalid("seed", self.seed, "must not be negative")
        if self.batch % (self.accumulate * self.processes):
            _invalid("batch", self.batch, "must be a multiple of accumulate times processes")
        _check_groups(self)

    @classmethod
    def sized(cls, size: str, **more: Any) -> TrainingConfig:
        """For the compact detector ``nano``, ``small`` or ``medium``."""
        if size not in _MODEL_SIZES:
            raise ParameterError(
                f"no compact detector is called {size!r}",
                where="TrainingConfig",
                hint=f"Sizes: {', '.join(_MODEL_SIZES)}",
            )
        width, depth = _MODEL_SIZES[size]
        return cls(width=width, depth=depth, **more)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> TrainingConfig:
        """From what `dataclasses.asdict` gave, also by way of JSON."""
        augment = {**values["augment"], "zoom": tuple(values["augment"]["zoom"])}
        groups = {"sampling": Sampling, "trust": LabelTrust, "stopping": EarlyStopping}
        made = {name: kind(**values[name]) for name, kind in groups.items()}
        return cls(**{**values, "augment": Augmentation(**augment), **made})

    def steps_for(self, frames: int) -> int:
        """Optimiser steps over ``frames`` frames."""
        if self.epochs is None:
            return self.steps
        return self.epochs * self.steps_per_epoch(frames)

    def steps_per_epoch(self, frames: int) -> int:
        return math.ceil(frames / self.batch)

    def rate(self, step: int, total: int) -> float:
        """Learning rate of a step: up to ``lr``, then down a cosine to almost nothing."""
        rise = max(1, round(self.warmup * total))
        if step < rise:
            risen = (step + 1) / rise
            if self.schedule == "cosine":
                return self.lr * risen
            return self.lr * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * risen)))
        share = (step + 1 - rise) / max(1, total - rise)
        final = _FINAL_LR_SHARE[self.schedule]
        return self.lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint records: plain JSON values, and only what shapes the weights."""
        default = _as_values(type(self)())
        values = _as_values(self)
        kept = {
            name: value
            for name, value in values.items()
            if name in _ALWAYS_RECORDED or (name not in _RUNTIME_ONLY and value != default[name])
        }
        usual = asdict(Augmentation())
        kept["augment"] = {
            name: value
            for name, value in kept["augment"].items()
            if name not in _PROBABILITIES[1:] or value != usual[name]
        }
        return kept


def _as_values(config: TrainingConfig) -> dict[str, Any]:
    values = asdict(config)
    values["augment"]["zoom"] = list(config.augment.zoom)
    return values


def _check_groups(config: TrainingConfig) -> None:
    low, high = config.augment.zoom
    if not 0 < low <= high:
        _invalid("augment.zoom", config.augment.zoom, "must be 0 < smallest <= largest")
    for name in _PROBABILITIES:
        if not 0 <= getattr(config.augment, name) <= 1:
            _invalid(f"augment.{name}", getattr(config.augment, name), "must lie in [0, 1]")
    for part in fields(LabelTrust):
        if not 0 <= getattr(config.trust, part.name) <= 1:
            _invalid(f"trust.{part.name}", getattr(config.trust, part.name), "must lie in [0, 1]")
    for name in ("classes", "slices"):
        if not 0 <= getattr(config.sampling, name) <= 1:
            _invalid(f"sampling.{name}", getattr(config.sampling, name), "must lie in [0, 1]")
    if not 0 < config.sampling.rare <= 1 or config.sampling.cap < 1:
        _invalid("sampling", config.sampling, "needs 0 < rare <= 1 and cap >= 1")
    stopping = config.stopping
    if min(stopping.every, stopping.patience) < 0 or (stopping.patience and not stopping.every):
        _invalid("stopping.patience", stopping.patience, "needs looks: every must be above zero")
    if stopping.forget is not None and not 0 <= stopping.forget <= 1:
        _invalid("stopping.forget", stopping.forget, "must lie in [0, 1]")


def _require_positive(config: TrainingConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            _invalid(name, getattr(config, name), "must be above zero")


def _invalid(name: str, value: object, rule: str) -> None:
    raise ParameterError(f"{name} is {value}: it {rule}", where=f"TrainingConfig.{name}")
