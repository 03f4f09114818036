"""Perturbations: what each does to an image, and rates that stand beside those of clean frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.core.errors import ParameterError
from workbench.detection.families import Detections
from workbench.evaluation import perturbations
from workbench.evaluation.perturbations import (
    LATENCY_INPUTS,
    measure_latency,
    measure_perturbations,
    perturb,
)

IMAGE = np.random.default_rng(0).integers(30, 180, (90, 160, 3)).astype(np.uint8)
OPERATIONS = ("rain", "fog", "night_noise", "blur", "glare", "dead_pixels")


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_changes_the_image_and_repeats(name: str):
    changed = perturb(IMAGE, name, seed=3)
    assert changed.shape == IMAGE.shape and changed.dtype == np.uint8
    assert (changed != IMAGE).any()
    assert (changed == perturb(IMAGE, name, seed=3)).all()
    if name in ("fog", "blur"):
        assert changed.std() < IMAGE.std(), "less contrast"
    if name in ("rain", "glare", "fog"):
        assert changed.mean() > IMAGE.mean(), "brighter"
    if name == "night_noise":
        assert changed.mean() < 0.4 * IMAGE.mean(), "darker"
    if name == "dead_pixels":
        assert 0.001 < (changed != IMAGE).any(2).mean() < 0.05


def test_unknown_names_are_refused(build):
    with pytest.raises(ParameterError, match="no perturbation 'rian'") as error:
        perturb(IMAGE, "rian")
    assert "rain" in str(error.value.hint)


class DimModel:
    """Finds the car unless the image is darker than it was; its float file finds it always."""

    classes = ("car", "truck", "pedestrian", "cyclist")
    threshold = 0.3

    def __init__(self, always: bool = False) -> None:
        self.always = always
        self.predictor = self

    @property
    def fp32(self) -> DimModel:
        return DimModel(always=True)

    def predict(self, images: list[np.ndarray]) -> list[Detections]:
        found = self.always or images[0].mean() < 100
        rows = np.array([[10, 10, 30, 30]] if found else np.zeros((0, 4)), np.float32)
        scores, classes = np.full(len(rows), 0.9, np.float32), np.zeros(len(rows), np.int64)
        return [Detections(rows, scores, classes)]


def test_rates_are_paired_with_those_of_the_same_frames(build, workspace, monkeypatch):
    frames = [build.frame(f"d{n // 2}", n % 2) for n in range(8)]
    labels = [build.label(frame, "car", (10, 10, 20, 20)) for frame in frames]
    labels += [build.label(frames[0], "pedestrian", (60, 10, 10, 30))]
    labels += [build.label(frames[1], "car", (90, 10, 10, 10), ignore=True)]
    dataset = replace(build.dataset(frames, labels), workspace=workspace)
    dark = {frames[0].id}  # one clean frame is too bright for the model

    def load(_: object, frame) -> np.ndarray:
        return np.full((90, 160, 3), 120 if frame.id in dark else 60, np.uint8)

    monkeypatch.setattr(perturbations, "load_frame", load)
    rates = measure_perturbations(DimModel(), dataset, ("fog", "time_shift", "int8"), resamples=200)
    found = {(one.name, one.part): one for one in rates}
    fog = found["fog", "all"]
    assert (fog.frames, fog.drives, fog.labels) == (8, 4, 9)
    assert (fog.clean, fog.perturbed) == (pytest.approx(2 / 9), 1.0)
    assert fog.low <= fog.perturbed - fog.clean <= fog.high
    assert found["fog", "vru"].clean == found["fog", "vru"].perturbed == 1.0
    shifted = found["time_shift", "all"]  # only frames with one before, which may be the bright one
    assert (shifted.frames, shifted.labels, shifted.clean) == (4, 4, 0.0)
    assert shifted.perturbed == pytest.approx(1 / 4)
    quantized = found["int8", "all"]
    assert (quantized.clean, quantized.perturbed) == (pytest.approx(1 / 9), pytest.approx(2 / 9))


class SlowInTheDark:
    """Takes 10 ms a frame of a clock, and 150 ms for a dark one."""

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.predictor, self.shapes = clock, self, set[tuple[int, ...]]()

    def predict(self, images: list[np.ndarray]) -> list[Detections]:
        self.shapes.add(images[0].shape[:2])
        dark = images[0].mean() < 40
        self.clock[0] += 0.150 if dark else 0.010
        count = 3 if dark else 1
        rows = np.zeros((count, 4), np.float32)
        return [Detections(rows, np.ones(count, np.float32), np.zeros(count, np.int64))]


def test_latency_is_told_by_kind_of_input_with_lateness(build, workspace, monkeypatch):
    clock = [0.0]
    dataset = replace(build.dataset([build.frame("d", n) for n in range(4)]), workspace=workspace)
    monkeypatch.setattr(perturbations, "load_frame", lambda *_: IMAGE)
    monkeypatch.setattr(perturbations.time, "perf_counter", lambda: clock[0])
    model = SlowInTheDark(clock)
    rows = {one.name: one for one in measure_latency(model, dataset, deadline_ms=100, calls=20)}
    assert tuple(rows) == LATENCY_INPUTS
    clean, dark = rows["clean"], rows["night_noise"]
    assert (clean.p50_ms, clean.p99_ms, clean.late) == pytest.approx((10, 10, 0))
    assert dark.p50_ms == pytest.approx(150) and (dark.late, dark.boxes) == (1, 3)
    assert clean.late_high == pytest.approx(1 - 0.025 ** (1 / 20))  # closed form without events
    assert clean.p99_high_ms is None  # 20 calls cannot bound the 99th percentile
    assert {(480, 640), (2160, 3840), (1280, 720)} <= model.shapes
    assert "late 100.0%" in dark.line()


def test_intervals_of_quantiles_hold():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        row = perturbations._latency("clean", np.sort(rng.exponential(1, 60)), 0, 1e9)
        inside += row.p50_low_ms <= np.log(2) <= row.p50_high_ms
    assert inside / 400 >= 0.93
