"""What a vehicle measures of frames and answers."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.core.errors import DataError
from workbench.data.telemetry import SIGNALS, Sketch, TelemetryBundle
from workbench.deployment.runtime import Answer, AnswerBox, AnswerStatus
from workbench.deployment.telemetry import RideSignals, describe_image
from workbench.detection.preprocessing import Pixels


def image(seed: int = 0, noise: float = 0.0, level: float = 0.5) -> Pixels:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-0.2, 0.2, 320)[None, :, None] + level
    values = ramp + rng.normal(0, noise, (192, 320, 1)) + np.zeros((192, 320, 3))
    return np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)


def answer(*boxes: AnswerBox, status: AnswerStatus = AnswerStatus.OK, ms: float = 12.0) -> Answer:
    return Answer(file="f", sequence="s", status=status, boxes=boxes, by="b", ms=ms)


def box(height: float, left: float = 120.0, score: float = 0.9) -> AnswerBox:
    return AnswerBox(cls="car", score=score, xyxy=(left, 50.0, left + height, 50.0 + height))


def by_name(ride: RideSignals) -> dict[tuple[str, str], Sketch]:
    return {(one.signal, one.cls): one for one in ride.sketches()}


@pytest.mark.parametrize("sigma", [0.02, 0.05])
def test_noise_is_measured_and_edges_are_not_noise(sigma: float) -> None:
    assert describe_image(image(noise=sigma)).noise == pytest.approx(sigma, rel=0.1)
    clean = describe_image(image())
    assert clean.noise < 0.002 and clean.brightness == pytest.approx(0.5, abs=0.01)
    assert clean.contrast == pytest.approx(0.4 / 12**0.5, abs=0.005)


def test_a_covered_lens_is_blockage() -> None:
    free = image(noise=0.03)
    half = free.copy()
    half[:, :160] = 40
    assert describe_image(free).blockage == 0
    assert describe_image(half).blockage == pytest.approx(0.5)


def test_every_signal_is_reported_and_makes_a_bundle() -> None:
    ride = RideSignals(("car", "pedestrian"), 0.3, budget_ms=20)
    ride.add(answer(box(40), box(10)), image(1, 0.01))
    ride.add(answer(status=AnswerStatus.LATE, ms=33), image(2, 0.01))
    ride.add(answer(box(30), status=AnswerStatus.FALLBACK), image(3, 0.01))
    ride.add(answer(status=AnswerStatus.UNREADABLE), DataError("broken"))
    ride.add(answer(), image(3, 0.01))
    ride.shadow_dropped()
    found = by_name(ride)
    assert {name for name, _ in found} == set(SIGNALS)
    for status in AnswerStatus:
        assert (found[f"frames.{status}", ""].sum, found[f"frames.{status}", ""].n) == (
            2 if status is AnswerStatus.OK else 1, 5,
        )  # fmt: skip
    assert found["frames.frozen", ""].sum == 1 and found["frames.shadow_dropped", ""].sum == 1
    assert found["lateness", ""].mean == pytest.approx(13)
    assert found["detections", "car"].sum == 2  # boxes of the rule do not count
    assert found["size", "car"].minimum == 10 and found["confidence", "pedestrian"].n == 0
    assert found["input.brightness", ""].n == 4
    TelemetryBundle(
        vehicle="v", sequence=1, day=0, ride="r", evidence="real", model="m", version=1,
        sketches=ride.sketches(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heights", "left", "misses"),
    [
        ([[], [60], [66], [72]], 120, 1),  # suddenly there, and closing
        ([[20], [28], [38], [50]], 120, 0),  # seen early
        ([[], [60], [60], [60]], 120, 0),  # not closing
        ([[], [60], [66]], 2, 0),  # came in from the side
        ([[60], [66], [72]], 120, 0),  # there when the ride began
        ([[], [20], [25]], 120, 0),  # far away
    ],
)
def test_near_misses(heights: list[list[float]], left: float, misses: int) -> None:
    ride = RideSignals(("car",), 0.3)
    for number, sizes in enumerate(heights):
        ride.add(answer(*(box(size, left) for size in sizes)), image(number, 0.01))
    assert by_name(ride)["near_misses", ""].sum == misses


def test_near_misses_are_of_boxes_that_the_model_acts_on() -> None:
    counts = []
    for threshold in (0.3, 0.8):
        ride = RideSignals(("car",), threshold)
        for number, height in enumerate((0, 60, 66)):
            boxes = [box(height, score=0.5)] if height else []
            ride.add(answer(*boxes), image(number, 0.01))
        counts.append(by_name(ride)["near_misses", ""].sum)
    assert counts == [1, 0]


def test_long_rides_are_no_larger() -> None:
    sizes = []
    for frames in (10, 5000):
        ride, seen = RideSignals(("car",), 0.3), image(0, 0.01)[:16, :16]
        for number in range(frames):
            ride.add(answer(box(5 + number % 40)), seen)
        assert by_name(ride)["size", "car"].n == frames
        sizes.append(len(ride.sketches()))
    assert sizes[0] == sizes[1]
