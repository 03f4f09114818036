"""Each metric is tested on an image with its fault, and on real drives without faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from workbench.curation.embedding.quality import QUALITY_NAMES, QualityGate, measure_quality

GATE = QualityGate()


@pytest.fixture
def scene() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 235, (12, 16, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)
    sharp = np.kron(rng.integers(-25, 25, (60, 80, 1)), np.ones((4, 4, 1)))
    return (np.asarray(smooth) + sharp + rng.normal(0, 2, (240, 320, 1))).clip(0, 255).astype("u1")


def metrics(image: np.ndarray) -> dict[str, float]:
    return dict(zip(QUALITY_NAMES, measure_quality(image).tolist(), strict=True))


def test_a_clean_image_passes(scene: np.ndarray) -> None:
    assert GATE.verdict(measure_quality(scene)) == ""
    assert metrics(scene)["blockage"] == 0


def test_dark_and_bright(scene: np.ndarray) -> None:
    assert GATE.verdict(measure_quality(scene // 100)) == "dark"
    assert GATE.verdict(measure_quality(np.full_like(scene, 255))) == "bright"
    assert GATE.verdict(measure_quality(scene // 12)) == ""  # a real night is dark, but not broken
    assert metrics(scene // 2)["brightness"] == pytest.approx(
        metrics(scene)["brightness"] / 2, abs=0.01
    )


def test_flat(scene: np.ndarray) -> None:
    grey = np.full_like(scene, 90)
    assert GATE.verdict(measure_quality(grey)) == "flat"
    assert metrics(grey)["blockage"] == 1


def test_blurred(scene: np.ndarray) -> None:
    out_of_focus = np.asarray(Image.fromarray(scene).filter(ImageFilter.GaussianBlur(12)))
    assert metrics(out_of_focus)["sharpness"] < metrics(scene)["sharpness"] / 10
    assert GATE.verdict(measure_quality(out_of_focus)) == "blurred"


@pytest.mark.parametrize("sigma", [8, 30])
def test_noise_is_measured_in_its_own_unit(sigma: int) -> None:
    rng = np.random.default_rng(1)
    ramp = np.tile(np.linspace(80, 170, 320)[None, :, None], (240, 1, 3))
    noisy = (ramp + rng.normal(0, sigma, (240, 320, 1))).clip(0, 255).astype(np.uint8)
    assert metrics(noisy)["noise"] == pytest.approx(sigma / 255, rel=0.1)
    assert GATE.verdict(measure_quality(noisy)) == ("noisy" if sigma == 30 else "")


def test_noise_of_a_scene_counts_its_calm_parts_only(scene: np.ndarray) -> None:
    assert metrics(scene)["noise"] < 0.03


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_half_of_the_lens_covered(scene: np.ndarray, side: str) -> None:
    covered = scene.copy()
    half = {
        "left": np.s_[:, :160],
        "right": np.s_[:, 160:],
        "top": np.s_[:120],
        "bottom": np.s_[120:],
    }[side]
    covered[half] = 14
    assert metrics(covered)["blockage"] == pytest.approx(0.5, abs=0.1)
    assert GATE.verdict(measure_quality(covered)) == "blocked"


def test_an_overexposed_sky_is_not_blockage(scene: np.ndarray) -> None:
    bright = scene.copy()
    bright[:110] = 254
    assert metrics(bright)["blockage"] == 0
    assert GATE.verdict(measure_quality(bright)) == ""


def test_nan_is_unmeasured() -> None:
    assert GATE.verdict(np.array([np.nan, 0.2, 0.1, 0, 0], np.float32)) == "unmeasured"


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (9, 9), (1080, 1920)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    values = measure_quality(rng.integers(0, 255, (*size, 3)).astype(np.uint8))
    assert values.shape == (len(QUALITY_NAMES),)
    assert np.isfinite(values).all()


def test_real_drives_are_not_broken(shared_data: Path) -> None:
    images = sorted((shared_data / "camvid" / "images").glob("*.jpg"))[::12]
    verdicts = [
        GATE.verdict(measure_quality(np.asarray(Image.open(one).convert("RGB")))) for one in images
    ]
    assert verdicts == [""] * len(images)
