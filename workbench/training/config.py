"""Training configuration: equal configurations give equal weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from workbench.core.errors import ParameterError
from workbench.core.types import Json
from workbench.data.slice_file import parse_slice
from workbench.data.slices import STANDARD_SLICES, Slice

if TYPE_CHECKING:
    from workbench.detection.preprocessing import Preprocessing

__all__ = ["MODEL_SIZES", "TrainingConfig", "TrainingOptions"]

_Share = Annotated[float, Field(ge=0, le=1)]
_OpenShare = Annotated[float, Field(ge=0, lt=1)]

_MODEL_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"steps": 900, "width": 0.5},
    "small": {"steps": 900},
    "medium": {"steps": 900, "width": 1.5, "depth": 2},
    # From sweeps on real rides: docs/how-to/training.md.
    "lite0": {
        "backbone": "lite0",
        "steps": 1500,
        "batch": 4,
        "lr": 6e-3,
        "heads_first": 1.0,
        "variants": 2,
        "window": (512, 288),
        "freeze_norm": True,
    },
}
# From a trained model of that size; where it is not listed, as from the start.
_CONTINUED: dict[str, dict[str, Any]] = {
    "lite0": {"steps": 500, "lr": 3e-3, "heads_first": 0.0, "freeze": 2, "backbone_rate": 0.1},
}
MODEL_SIZES = tuple(_MODEL_SIZES)
"""Names for `TrainingConfig.sized`."""
_INPUT_SIZES = {"compact": (320, 192), "lite0": (768, 448)}
_FINAL_LR_SHARE = {"one-cycle": 0.002, "cosine": 0.01}
_RUNTIME_ONLY = {"memory_mib", "limit_mib", "keep_minutes"}
_ALWAYS_RECORDED = {
    "steps", "epochs", "batch", "lr", "warmup", "ema", "weight_decay", "clip_norm", "width", "seed",
    "threads", "augment",
}  # fmt: skip
"""Fields that every checkpoint records. Any other field is recorded only where it is not at its
default, so that a new field does not change the digests of trainings that do not use it."""
_RECORDED_IF_CHANGED = {"mosaic", "fog", "rain", "night", "noise", "blur"}


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def replace(self, **changes: Any) -> Self:
        """A validated copy with these fields changed."""
        return type(self)(**{**dict(self), **changes})


class Augmentation(_Settings):
    """How much a frame is varied each time it is used."""

    flip: _Share = 0.5
    """Probability of a horizontal flip."""
    zoom: tuple[Annotated[float, Field(gt=0)], float] = (0.9, 1.3)
    """Smallest and largest scale factor, drawn uniformly on a logarithmic scale."""
    shift: float = 0.05
    """Largest translation as a share of width and height."""
    brightness: float = 0.25
    """Largest relative change of the gain: 0.4 draws from 0.6 to 1.4."""
    gamma: float = 1.3
    """Largest exponent; its inverse is the smallest."""
    colour: float = 0.08
    """Largest relative change of one channel's gain."""
    mosaic: _Share = 0.0
    """Probability of a mosaic of four frames (Bochkovskiy et al. 2020)."""
    fog: _Share = 0.0
    """Probability of haze that grows towards the horizon."""
    rain: _Share = 0.0
    """Probability of rain streaks with lower contrast."""
    night: _Share = 0.0
    """Probability of low light: lower gain and saturation, more sensor noise."""
    noise: _Share = 0.0
    """Probability of sensor noise (shot and read noise)."""
    blur: _Share = 0.0
    """Probability of motion or defocus blur."""

    @field_validator("zoom")
    @classmethod
    def _check_zoom(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if zoom[0] > zoom[1]:
            raise ValueError("the smallest factor must not exceed the largest")
        return zoom

    @classmethod
    def none(cls) -> Augmentation:
        """Every frame as it is."""
        return cls(flip=0, zoom=(1, 1), shift=0, brightness=0, gamma=1, colour=0)

    @classmethod
    def driving(cls) -> Augmentation:
        """For cameras behind windscreens: weather, darkness and noise besides light."""
        return cls(mosaic=0.2, fog=0.08, rain=0.08, night=0.1, noise=0.15, blur=0.08)

    @property
    def has_corruptions(self) -> bool:
        """Whether weather, darkness, noise or blur can occur."""
        return max(self.fog, self.rain, self.night, self.blur, self.noise) > 0


class Sampling(_Settings):
    """Repeat-factor sampling (Gupta et al., LVIS, 2019): rare frames are used more often.

    A class or slice in a share ``f`` of the frames below ``rare`` gets the factor
    ``min(cap, (rare / f) ** power)``; a frame gets the largest factor of all it contains. The
    length of an epoch stays the same.
    """

    classes: _Share = 0.0
    """Power for classes; 0 turns it off, LVIS uses 0.5."""
    slices: _Share = 0.0
    """Power for slices and for events of frames."""
    definitions: dict[str, Json] = {}
    """Slices by name, predicates as in pipelines/slices.yaml; empty for the standard ones."""
    rare: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the frames below which a class or slice is rare."""
    cap: Annotated[float, Field(ge=1)] = 4.0
    """Largest repeat factor."""

    @property
    def enabled(self) -> bool:
        """Whether any frame can be repeated."""
        return self.classes > 0 or self.slices > 0

    def parts(self) -> tuple[Slice, ...]:
        """The slices to sample by."""
        if not self.definitions:
            return STANDARD_SLICES[1:]  # without `all`
        return tuple(parse_slice(name, where) for name, where in self.definitions.items())


class LabelTrust(_Settings):
    """Weight of a label in the loss by its origin; 1 is full weight."""

    replayed: _Share = 1.0
    """Labels replayed from known boxes with noise."""
    accepted: _Share = 1.0
    """Model boxes that a person accepted unchanged."""
    disputed: _Share = 1.0
    """Labels of frames that labelers disagreed about and nobody has resolved."""


class EarlyStopping(_Settings):
    """When the model is validated during training, and when that ends the training."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps between validations; 0 validates at the end only."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Validations without improvement after which training ends with the best weights; 0 never
    ends early."""
    figure: str = "all"
    """Name of the validation metric that decides; larger is better."""
    least: float = 0.0
    """Smallest gain that counts as an improvement."""
    forget: _Share | None = None
    """Largest allowed drop of any validation metric below the model that training started from;
    beyond it training ends with the last weights that kept to it. None sets no limit."""

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        if self.patience and not self.every:
            raise ValueError("patience needs validations: set every above 0")
        return self


def _resolve_preset(value: Any) -> Any:
    presets = {"plain": Augmentation, "driving": Augmentation.driving}
    return presets[value]() if isinstance(value, str) and value in presets else value


class TrainingOptions(_Settings):
    """Optional settings of a training, all with defaults: the ``config`` of the training step."""

    augment: Annotated[
        Augmentation,
        BeforeValidator(
            _resolve_preset, json_schema_input_type=Augmentation | Literal["plain", "driving"]
        ),
    ] = Augmentation()
    """Data augmentation: settings, or the name of a preset, ``plain`` or ``driving``."""
    sampling: Sampling = Sampling()
    """Repeat-factor sampling of rare frames."""
    trust: LabelTrust = LabelTrust()
    """Weights of labels by origin."""
    stopping: EarlyStopping = EarlyStopping()
    """Validation during training and early stopping."""
    replay: _OpenShare = 0.0
    """Share of each epoch taken from old frames when fine-tuning on mined ones."""
    epochs: Annotated[int, Field(gt=0)] | None = None
    """Passes over the frames, instead of ``steps``."""
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    """Learning rate schedule: one-cycle (Smith 2018), or linear warm-up and cosine."""
    warmup: _OpenShare = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: _OpenShare = 0.03
    """AdamW weight decay; biases and normalization layers have none."""
    ema: _OpenShare = 0.99
    """Decay of the exponential moving average of the weights, which is the result."""
    clip_norm: Annotated[float, Field(gt=0)] = 10.0
    """Largest gradient norm."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast precision of the forward and backward pass; weights stay float32."""
    accumulate: Annotated[int, Field(gt=0)] = 1
    """Micro-batches that a step is split into, so that a large batch fits into little memory."""
    processes: Annotated[int, Field(gt=0)] = 1
    """Processes that share each step (DDP)."""
    freeze: Annotated[int, Field(ge=0)] = 0
    """Stages of the backbone, the stem first, that stay as they are."""
    freeze_norm: bool = False
    """Whether every batch norm of the backbone keeps its statistics, scale and bias."""
    backbone_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of the backbone as a share of ``lr``."""
    heads_first: _Share = 0.0
    """Share of the steps, the first ones, in which only pyramid and heads are trained, on features
    that the backbone computes once for each variant of a frame."""
    variants: Annotated[int, Field(gt=0)] = 3
    """Augmented variants of each frame in those first steps."""
    window: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """Width and height, in network pixels, of the part of a frame that each step sees, most often
    around an object: a large input then takes no longer to train on than a small one. None is the
    whole frame. Where ``freeze`` and ``freeze_norm`` keep whole maps of the backbone as they are,
    steps with a window are on known features as well.
    """
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to train on."""
    memory_mib: Annotated[int, Field(gt=0)] = 1024
    """Cache of decoded frames in MiB; beyond it each frame is decoded when it is needed."""
    limit_mib: Annotated[int, Field(gt=0)] | None = None
    """Memory limit of the process in MiB; None sets no limit."""
    keep_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Checkpoint state is saved after each epoch, and at this interval in minutes."""


class TrainingConfig(TrainingOptions):
    """Configuration of one training.

    Raises:
        ParameterError: A field is unknown or its value is not allowed; the message names it.
    """

    steps: Annotated[int, Field(gt=0)] = 650
    """Optimizer steps. A fixed number takes the same time for any number of frames, and makes
    trainings on different data comparable."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Frames per step over all processes."""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Highest learning rate of the schedule."""
    backbone: Literal["compact", "lite0"] = "compact"
    """The compact detector's own backbone, or EfficientNet-Lite0 with its ImageNet weights."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Width of the detector, see `DetectorConfig`."""
    depth: Annotated[int, Field(gt=0)] = 1
    """Depth of the compact detector, see `DetectorConfig`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random."""
    threads: Annotated[int, Field(gt=0)] = 2
    """Torch threads; weights are reproducible to the bit for an equal number only."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch % (self.accumulate * self.processes):
            raise ValueError(f"batch {self.batch} must be a multiple of accumulate times processes")
        return self

    @model_validator(mode="after")
    def _check_heads_first(self) -> Self:
        if self.heads_first and not self.freeze_norm:
            raise ValueError("heads_first needs freeze_norm: else features depend on the batch")
        return self

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.window and any(side % 32 for side in self.window):
            raise ValueError("sides of the window must be multiples of 32")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _raise_parameter_error(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            problem = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                problem = f"unknown setting {name!r}"
            elif name:
                problem = f"{name} is {first['input']!r}: {problem}"
            raise ParameterError(problem, where=f"TrainingConfig.{name}".rstrip(".")) from error

    @classmethod
    def sized(cls, size: str, *, continued: bool = False, **settings: Any) -> TrainingConfig:
        """Configuration for a model size: ``nano``, ``small``, ``medium`` or ``lite0``.

        Args:
            size: Name of the model size; ``lite0`` has a pretrained backbone.
            continued: For a training that starts from a trained model: of ``lite0``, the backbone
                but its first two stages is then trained as well.
            settings: Other fields; None keeps the default of the size.

        Raises:
            ParameterError: Unknown size, or a field's value is not allowed.
        """
        if size not in _MODEL_SIZES:
            raise ParameterError(
                f"unknown model size {size!r}",
                where="TrainingConfig",
                hint=f"Sizes: {', '.join(_MODEL_SIZES)}",
            )
        given = {name: value for name, value in settings.items() if value is not None}
        start = _CONTINUED.get(size, {}) if continued else {}
        return cls(**_MODEL_SIZES[size] | start | given)

    def preprocessing(self, width: int = 0, height: int = 0) -> Preprocessing:
        """The input contract of this detector.

        Args:
            width: Of the network input in pixels; 0 for the default of the detector.
            height: Of the network input in pixels; 0 for the default of the detector.
        """
        from workbench.detection.preprocessing import Preprocessing

        default = _INPUT_SIZES[self.backbone]
        size = {"width": width or default[0], "height": height or default[1]}
        if self.backbone == "lite0":
            return Preprocessing.imagenet_lite(**size)
        return Preprocessing(**size)

    def steps_for(self, frames: int) -> int:
        """Optimizer steps for a dataset of ``frames`` frames."""
        return self.steps if self.epochs is None else self.epochs * self.steps_per_epoch(frames)

    def steps_per_epoch(self, frames: int) -> int:
        """Steps of one pass over ``frames`` frames."""
        return math.ceil(frames / self.batch)

    def learning_rate(self, step: int, total: int) -> float:
        """Learning rate of ``step`` out of ``total``: warm-up to ``lr``, then a cosine decay."""
        warmup_steps = max(1, round(self.warmup * total))
        if step < warmup_steps:
            share = (step + 1) / warmup_steps
            if self.schedule == "cosine":
                return self.lr * share
            return self.lr * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * share)))
        share = (step + 1 - warmup_steps) / max(1, total - warmup_steps)
        final = _FINAL_LR_SHARE[self.schedule]
        return self.lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))

    def as_json(self) -> dict[str, Any]:
        """The fields that a checkpoint records: only those that shape the weights."""
        values = self.model_dump(mode="json", exclude=_RUNTIME_ONLY)
        defaults = type(self)().model_dump(mode="json")
        recorded = {
            name: value
            for name, value in values.items()
            if name in _ALWAYS_RECORDED or value != defaults[name]
        }
        recorded["augment"] = {
            name: value
            for name, value in values["augment"].items()
            if name not in _RECORDED_IF_CHANGED or value != defaults["augment"][name]
        }
        return recorded
