"""What vehicles report about a ride: a versioned bundle of sketches, one for each signal.

A sketch has counts in fixed bins and exact moments, so sketches of rides, days and vehicles are
added without loss and in any order. A bundle's size does not depend on the length of the ride:
cost grows with vehicle-days and not with frames.

All numbers of a sketch are integers. Moments are in units of the signal's ``resolution``: a mean of
brightness of 0.5 is ``sum = 500 n`` at a resolution of 0.001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, StringConstraints, model_validator

from workbench.records.base import FrozenModel

__all__ = ["SIGNALS", "Sketch", "TelemetryBundle"]

TELEMETRY_VERSION: Final = 1
"""Version of bundles and of the signals below. Bins of a signal never change within a version."""

SHADOW: Final = "shadow/"
"""Begins the name of a model that answered in the shadow: nobody drove by it."""

MAX_FRAMES = 10_000_000
"""Frames of one ride, at most; boxes at most 1,000 times as many."""

Evidence = Literal["real", "replayed", "simulated"]
"""``replayed``: real frames of a dataset; ``simulated``: rendered or drawn at random."""


@dataclass(frozen=True)
class Signal:
    """One thing that vehicles measure.

    Attributes:
        unit: Of its values.
        per: What ``n`` counts: ``frame``, ``box`` or ``late frame``.
        edges: Of the bins, ascending; empty for a count, whose ``sum`` is a number of events among
            ``n`` frames.
        resolution: Step to which values are rounded for the moments.
        by_class: Whether there is a sketch for each class of objects.
    """

    name: str
    unit: str
    per: str
    meaning: str
    edges: tuple[float, ...] = ()
    resolution: float = 1.0
    by_class: bool = False


def _linear(low: float, high: float, bins: int) -> tuple[float, ...]:
    return tuple(round(float(edge), 9) for edge in np.linspace(low, high, bins + 1))


_SIZES = (0.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 512.0, 4096.0)
_TIMES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0, 500.0, 1e4)

SIGNALS: Final[dict[str, Signal]] = {
    signal.name: signal
    for signal in (
        # Health of the sensor and of the software.
        Signal("frames.ok", "frames", "frame", "answered by the model in time"),
        Signal("frames.late", "frames", "frame", "answered after the deadline"),
        Signal("frames.fallback", "frames", "frame", "model failed; answered by the rule"),
        Signal("frames.unreadable", "frames", "frame", "the image could not be decoded"),
        Signal("frames.frozen", "frames", "frame", "same pixels as the frame before"),
        Signal("frames.shadow_dropped", "frames", "frame", "shadow model had no time"),
        Signal("near_misses", "objects", "frame", "closing objects that were first seen late"),
        Signal(
            "latency", "ms", "frame", "time of preprocessing, network and decoding", _TIMES, 0.1
        ),
        Signal("lateness", "ms", "late frame", "time after the deadline", _TIMES, 0.1),
        # What the camera sees.
        Signal("input.brightness", "1", "frame", "mean luma", _linear(0, 1, 20), 1e-3),
        Signal(
            "input.contrast", "1", "frame", "standard deviation of luma", _linear(0, 0.5, 20), 1e-3
        ),
        Signal(
            "input.noise", "1", "frame", "standard deviation of noise", _linear(0, 0.1, 20), 1e-4
        ),
        Signal(
            "input.blockage", "1", "frame", "share of tiles without any detail", _linear(0, 1, 16),
            1e-3,
        ),
        # What the model answers.
        Signal("detections", "boxes", "frame", "boxes", by_class=True),
        Signal("confidence", "1", "box", "score", _linear(0, 1, 20), 1e-3, by_class=True),
        Signal("size", "px", "box", "square root of the area", _SIZES, 1.0, by_class=True),
    )
}  # fmt: skip
"""All signals of version 1, by name."""

_Count = Annotated[int, Field(ge=0, le=1000 * MAX_FRAMES)]
_Text = Annotated[str, StringConstraints(max_length=200)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]


class Sketch(FrozenModel):
    """Values of one signal: counts in its bins, and moments.

    Attributes:
        signal: A name of `SIGNALS`.
        cls: Class of the objects; empty for signals without classes.
        n: Number of values; of frames for a count.
        sum: Sum of the values, in units of the signal's resolution; of events for a count.
        sum_squares: Sum of their squares, in units of the resolution squared.
        minimum, maximum: Of the values, in units of the resolution; 0 if ``n`` is 0. Values outside
            the bins are clipped to them.
        low, high: Values below the first edge and above the last, which are in the outer bins too.
        invalid: Values that were NaN or infinite; not among ``n``.
        counts: Values in each bin; the last one includes its upper edge.
    """

    signal: str
    cls: _Text = ""
    n: _Count = 0
    sum: int = 0
    sum_squares: int = 0
    minimum: int = 0
    maximum: int = 0
    low: _Count = 0
    high: _Count = 0
    invalid: _Count = 0
    counts: tuple[_Count, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Sketch:
        signal = SIGNALS.get(self.signal)
        if signal is None:
            raise ValueError(f"unknown signal {self.signal[:50]!r}")
        if bool(self.cls) != signal.by_class:
            raise ValueError(f"{self.signal} needs {'a' if signal.by_class else 'no'} class")
        if not signal.edges:
            if self.sum < 0 or self.counts or self.sum > 1000 * MAX_FRAMES:
                raise ValueError(f"impossible count of {self.signal}")
            if signal.unit == "frames" and self.sum > self.n:
                raise ValueError(f"more frames in {self.signal} than there are")
            return self
        first, last = (round(signal.edges[end] / signal.resolution) for end in (0, -1))
        if len(self.counts) != len(signal.edges) - 1 or sum(self.counts) != self.n:
            raise ValueError(f"bins of {self.signal} do not add up to its values")
        if self.n == 0:
            possible = not (self.sum or self.sum_squares or self.minimum or self.maximum)
        else:
            within = first <= self.minimum <= self.maximum <= last
            mean_within = self.n * self.minimum <= self.sum <= self.n * self.maximum
            largest = max(self.minimum**2, self.maximum**2)
            spread = self.sum**2 <= self.n * self.sum_squares <= self.n**2 * largest
            possible = within and mean_within and spread
        if not possible or self.low + self.high > self.n:
            raise ValueError(f"impossible moments of {self.signal}")
        return self

    @property
    def mean(self) -> float:
        """In the signal's unit; of a count, events a frame. NaN without values."""
        return self.sum * SIGNALS[self.signal].resolution / self.n if self.n else float("nan")

    @property
    def variance(self) -> float:
        """Of the values, in the signal's unit squared; NaN without values, or for a count."""
        if not self.n or not SIGNALS[self.signal].edges:
            return float("nan")
        exact = self.n * self.sum_squares - self.sum**2
        return exact * SIGNALS[self.signal].resolution ** 2 / self.n**2


def count(signal: str, events: int, frames: int, *, cls: str = "") -> Sketch:
    """The sketch of a count: ``events`` among ``frames``."""
    return Sketch(signal=signal, cls=cls, n=frames, sum=events)


def sketch(signal: str, values: ArrayLike, *, cls: str = "") -> Sketch:
    """The sketch of values.

    Args:
        signal: A name of `SIGNALS` with bins.
        values: Of any shape, in the signal's unit.
    """
    spec = SIGNALS[signal]
    given = np.asarray(values, np.float64).ravel()
    finite = given[np.isfinite(given)]
    edges = np.array(spec.edges)
    clipped = np.clip(finite, edges[0], edges[-1])
    units: NDArray[np.int64] = np.rint(clipped / spec.resolution).astype(np.int64)
    return Sketch(
        signal=signal,
        cls=cls,
        n=len(finite),
        sum=int(units.sum()),
        sum_squares=int((units * units).sum()),
        minimum=int(units.min()) if len(units) else 0,
        maximum=int(units.max()) if len(units) else 0,
        low=int((finite < edges[0]).sum()),
        high=int((finite > edges[-1]).sum()),
        invalid=len(given) - len(finite),
        counts=tuple(int(number) for number in np.histogram(clipped, edges)[0]),
    )


def merge(sketches: Sequence[Sketch]) -> Sketch:
    """The sketch of all values of several: exact, and the same in any order.

    Raises:
        ValueError: They are of different signals or classes, or there are none.
    """
    if len({(one.signal, one.cls) for one in sketches}) != 1:
        raise ValueError("sketches of one signal and class are needed")
    filled = [one for one in sketches if one.n]
    return Sketch(
        signal=sketches[0].signal,
        cls=sketches[0].cls,
        n=sum(one.n for one in sketches),
        sum=sum(one.sum for one in sketches),
        sum_squares=sum(one.sum_squares for one in sketches),
        minimum=min((one.minimum for one in filled), default=0),
        maximum=max((one.maximum for one in filled), default=0),
        low=sum(one.low for one in sketches),
        high=sum(one.high for one in sketches),
        invalid=sum(one.invalid for one in sketches),
        counts=tuple(map(sum, zip(*(one.counts for one in sketches), strict=True))),
    )


class TelemetryBundle(FrozenModel):
    """What a vehicle reports about one ride; the unit that is queued, sent, stored and counted.

    Attributes:
        sequence: Number of the bundle, from 1 on for each vehicle; never used twice.
        day: Days since the fleet's clock started, when the ride began.
        ride: Name of the ride, unique for the vehicle.
        model: What answered the frames: digest of a bundle, or a name.
        version: Of the front camera's release.
        software: Version by component, of all ECUs.
        hardware: Of the front camera's ECU.
        calibration: Of the front camera.
        conditions: What the vehicle's other sensors say about the whole ride: light, weather, road.
        dropped: Messages that the vehicle dropped for lack of space before this one, ever.
        sketches: At most one for each signal and class.
    """

    schema_version: Literal[1] = TELEMETRY_VERSION
    vehicle: _Name
    sequence: int = Field(ge=1, lt=2**53)
    day: int = Field(ge=0, lt=2**31)
    ride: _Text
    evidence: Evidence
    model: _Text
    version: int = Field(ge=0, lt=2**31)
    software: dict[_Text, _Text] = Field(default={}, max_length=20)
    hardware: _Text = ""
    calibration: _Text = ""
    region: _Text = ""
    model_year: int = Field(default=0, ge=0, le=9999)
    conditions: dict[_Text, _Text] = Field(default={}, max_length=20)
    dropped: int = Field(default=0, ge=0, lt=2**53)
    sketches: tuple[Sketch, ...] = Field(max_length=1000)

    @model_validator(mode="after")
    def _once(self) -> TelemetryBundle:
        if len({(one.signal, one.cls) for one in self.sketches}) < len(self.sketches):
            raise ValueError("two sketches of one signal and class")
        return self
