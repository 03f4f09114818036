"""Rides that the vehicles of a test fleet drive: real ones replayed, else drawn at random.

A replayed ride is what a model measured on the real frames of one drive, see
`workbench.deployment.telemetry`. Each vehicle has drives of its own, and takes some of them every
day. What is drawn at random says ``simulated``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from workbench.core import digest
from workbench.core.errors import DataError
from workbench.core.workspace import write_atomic
from workbench.data.telemetry import Evidence, Sketch, TelemetryBundle, count, sketch
from workbench.monitoring.queue import Priority, VehicleQueue
from workbench.records.base import FrozenModel

__all__ = ()

RIDES_A_DAY: Final = 3
_DRAWN: Final = 200  # values of a simulated ride
_MISSED_AT: Final = 5  # near misses of a ride that make its report urgent


class RideBox(FrozenModel):
    """A box of the model: ``xyxy`` in pixels of the frame, ``score`` in [0, 1]."""

    cls: str
    score: float
    xyxy: tuple[float, float, float, float]


class RideFrame(FrozenModel):
    """A frame that the vehicle still has, and what its model answered.

    Attributes:
        path: The image.
        file: Its name in answers.
        frame: Its digest.
        redaction: How faces and number plates were removed; ``none`` if they were not.
    """

    path: Path
    file: str
    frame: str
    redaction: str = "none"
    boxes: tuple[RideBox, ...] = ()

    def jpeg(self) -> bytes:
        """The image as a JPEG file; the file itself if it is one."""
        content = self.path.read_bytes()
        if content.startswith(b"\xff\xd8"):
            return content
        stream = io.BytesIO()
        Image.open(io.BytesIO(content)).convert("RGB").save(stream, "JPEG", quality=95)
        return stream.getvalue()


class Ride(FrozenModel):
    """What one model measured on one drive.

    Attributes:
        model: Digest of the bundle.
        dataset: Where the frames are from.
        conditions: The same in all frames of the drive.
        frames: Those that may be sent back.
    """

    ride: str
    evidence: Evidence
    model: str
    dataset: str = ""
    conditions: dict[str, str] = {}
    sketches: tuple[Sketch, ...]
    frames: tuple[RideFrame, ...] = ()


_RIDES: Final = TypeAdapter(tuple[Ride, ...])


def save_rides(path: Path, rides: Sequence[Ride]) -> None:
    """Write rides as JSON."""
    write_atomic(path, _RIDES.dump_json(tuple(rides)))


def load_rides(path: Path) -> tuple[Ride, ...]:
    """Read rides; none if there is no such file.

    Raises:
        DataError: It is damaged.
    """
    if not path.exists():
        return ()
    try:
        return _RIDES.validate_json(path.read_bytes())
    except ValueError as error:
        raise DataError("replayed rides cannot be read", where=path, hint="Delete it") from error


def rides_of_day(rides: Sequence[Ride], vehicle: str, day: int) -> list[Ride]:
    """The rides that a vehicle takes on a day: the same for the same arguments.

    Each vehicle has a part of all rides for itself, one in forty or at least twice as many as it
    takes a day.
    """
    if not rides:
        return [simulated_ride(vehicle, f"{day}-{number}") for number in range(RIDES_A_DAY)]
    own = np.random.default_rng(_seed(vehicle))
    share = min(len(rides), max(2 * RIDES_A_DAY, len(rides) // 40))
    numbers = own.choice(len(rides), share, replace=False)
    rng = np.random.default_rng(_seed(f"{vehicle} {day}"))
    return [rides[int(rng.choice(numbers))] for _ in range(RIDES_A_DAY)]


def simulated_ride(vehicle: str, name: str, *, frames: int = 20_000) -> Ride:
    """A ride drawn at random: each vehicle has a camera of its own, each ride its light."""
    own = np.random.default_rng(_seed(vehicle))
    camera = own.normal(0, 0.03)
    rng = np.random.default_rng(_seed(f"{vehicle} {name}"))
    night = bool(rng.random() < 0.3)
    level = (0.15 if night else 0.45) + camera + rng.normal(0, 0.04)
    sketches = [
        sketch("input.brightness", np.clip(rng.normal(level, 0.05, _DRAWN), 0, 1)),
        sketch("input.contrast", np.clip(rng.normal(0.2, 0.04, _DRAWN), 0, 0.5)),
        sketch("input.noise", np.clip(rng.normal(0.02 if night else 0.008, 2e-3, _DRAWN), 0, 0.1)),
        sketch("input.blockage", np.clip(rng.normal(0.1, 0.03, _DRAWN), 0, 1)),
        sketch("latency", rng.gamma(20, 1.5, _DRAWN)),
        count("near_misses", int(rng.poisson(0.5)), frames),
        count("frames.unreadable", 0, frames),
        count("frames.frozen", 0, frames),
    ]
    for cls, boxes in (("car", 4), ("pedestrian", 1)):
        sketches += [
            count("detections", int(rng.poisson(boxes * frames)), frames, cls=cls),
            sketch("confidence", rng.beta(4 if night else 6, 3, _DRAWN), cls=cls),
            sketch("size", rng.lognormal(4, 0.7, _DRAWN), cls=cls),
        ]
    light = "night" if night else "day"
    return Ride(
        ride=f"simulated {name}", evidence="simulated", model="simulated",
        conditions={"light": light}, sketches=tuple(sketches),
    )  # fmt: skip


def queue_ride(
    queue: VehicleQueue, ride: Ride, *, name: str, identity: Mapping[str, object]
) -> int | None:
    """Put the bundle of a ride into a vehicle's queue.

    Args:
        name: Of the ride, unique for the vehicle.
        identity: Fields of `TelemetryBundle` about the vehicle, its software and the day.

    Returns:
        Its number, or None if there was no space for it.
    """
    missed = sum(one.sum for one in ride.sketches if one.signal == "near_misses")

    def make(sequence: int, dropped: int) -> bytes:
        fields = {
            **identity,
            "sequence": sequence,
            "dropped": dropped,
            "ride": name,
            "evidence": ride.evidence,
            "model": ride.model,
            "conditions": ride.conditions,
        }
        bundle = TelemetryBundle.model_validate({**fields, "sketches": ride.sketches})
        return json.dumps(bundle.model_dump(mode="json"), separators=(",", ":")).encode()

    priority = Priority.URGENT if missed >= _MISSED_AT else Priority.TELEMETRY
    return queue.put("bundle", make, priority)


def queue_frame(
    queue: VehicleQueue, vehicle: str, about: Mapping[str, object], image: bytes
) -> int | None:
    """Put a frame into a vehicle's queue; it is sent after all telemetry.

    Args:
        about: What is said about it, as JSON.
        image: A JPEG file.

    Returns:
        Its number, or None if there was no space for it.
    """

    def make(sequence: int, _dropped: int) -> bytes:
        head = {**about, "vehicle": vehicle, "sequence": sequence, "sha256": digest.of_bytes(image)}
        return digest.canonical_json(head) + b"\n" + image

    return queue.put("frame", make, Priority.FRAME)


def _seed(text: str) -> int:
    return int(digest.of_bytes(text.encode())[:12], 16)
