from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from workbench.core import digest
from workbench.core.errors import ContractError, DataError
from workbench.detection import preprocessing
from workbench.detection.preprocessing import (
    Preprocessing,
    letterbox,
    letterbox_transform,
    load_rgb,
    normalise,
    preprocess,
    preprocess_batch,
)


def ramp(height: int, width: int) -> np.ndarray:
    """A picture whose bytes are the same everywhere, without random numbers or codecs."""
    rows, columns = np.mgrid[:height, :width]
    planes = (rows * 7 + columns * 3, rows * columns // 5, columns * 11 - rows * 2)
    return np.stack(planes, axis=-1).astype(np.uint8)


def test_golden_tensor() -> None:
    """These digests stand for every model trained so far: change them and none fits any more."""
    spec = Preprocessing()
    assert digest.shorten(spec.digest) == "649658210d32"
    tensor, _ = preprocess(ramp(360, 480), spec)
    assert digest.shorten(digest.of_bytes(tensor.tobytes())) == "1096074a3c62"
    tensor, _ = preprocess(ramp(97, 131), spec)
    assert digest.shorten(digest.of_bytes(tensor.tobytes())) == "36a9375e6d13"


def test_letterbox_keeps_the_aspect_ratio_and_pads_evenly() -> None:
    spec = Preprocessing(width=64, height=64, pad=9)
    pixels, placement = letterbox(np.full((20, 40, 3), 200, np.uint8), spec)
    assert (placement.scale_x, placement.scale_y) == (1.6, 1.6)
    assert (placement.dx, placement.dy) == (0, 16)
    assert (pixels[:16] == 9).all()
    assert (pixels[48:] == 9).all()
    assert (pixels[16:48] == 200).all()


@pytest.mark.parametrize(
    "size", [(480, 360), (480, 288), (1242, 375), (33, 517), (320, 192), (1, 1)]
)
def test_letterbox_transform_round_trip(size: tuple[int, int]) -> None:
    placement = letterbox_transform(*size, Preprocessing())
    whole = np.array([[0, 0, *size]], np.float32)
    inside = placement.to_network(whole)
    assert (inside >= 0).all()
    assert (inside <= np.array([320, 192, 320, 192])).all()
    assert placement.to_image(inside) == pytest.approx(whole, abs=1e-3)


def test_pixels_and_boxes_are_transformed_alike() -> None:
    image = np.zeros((375, 1242, 3), np.uint8)
    image[100:160, 600:700] = 255
    spec = Preprocessing()
    pixels, placement = letterbox(image, spec)
    rows, columns = np.nonzero(pixels[..., 0] > 127)
    rows = rows[(rows > 60) & (rows < 140)]
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    expected = placement.to_network(np.array([[600, 100, 700, 160]], np.float32))[0]
    assert found == pytest.approx(expected, abs=1)


def test_normalisation_follows_the_contract() -> None:
    spec = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    pixels = ramp(4, 5)
    expected = (pixels / 255 - np.array(spec.mean)) / np.array(spec.std)
    found = normalise(pixels, spec)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected.transpose(2, 0, 1).astype(np.float32), abs=1e-6)


def test_batch_equals_single_images() -> None:
    spec = Preprocessing(width=64, height=32)
    images = [ramp(30, 50), ramp(64, 64)]
    batch, placements = preprocess_batch(images, spec)
    for image, row, placement in zip(images, batch, placements, strict=True):
        alone, where = preprocess(image, spec)
        assert (alone == row).all()
        assert where == placement


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (6, 4), "white").convert(mode).save(path)
    pixels = load_rgb(path)
    assert pixels.shape == (4, 6, 3)
    assert (pixels == 255).all()


def test_sixteen_bit_grey_keeps_its_levels(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 0x80FF], [0x4000, 0xFFFF]], np.uint16)).save(path)
    assert load_rgb(path)[..., 0].tolist() == [[0, 0x80], [0x40, 0xFF]]


def test_damaged_and_missing_images_name_their_file(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(ramp(64, 64)).save(whole)
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(whole.read_bytes()[:-300])
    for path in (torn, tmp_path / "missing.jpg"):
        with pytest.raises(DataError, match=path.name):
            load_rgb(path)


def test_wrong_pixel_arrays_are_rejected() -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(DataError, match="uint8 pixels"):
            letterbox(wrong, Preprocessing())


def test_contract_with_unknown_fields_is_rejected() -> None:
    with pytest.raises(ValidationError):
        Preprocessing.model_validate({"colour": "BGR"})
    with pytest.raises(ValidationError):
        Preprocessing.model_validate({"swap": True})
    with pytest.raises(ValidationError):
        Preprocessing(std=(0.0, 1.0, 1.0))


# The golden image detects every common mistake in preprocessing.


SPEC = Preprocessing()


def test_golden_image_and_values_never_change() -> None:
    """Cars hold their own code to these: a change here is a change of every contract."""
    found = preprocessing.golden_values(SPEC)
    assert digest.shorten(found["picture"]["sha256"]) == "340ecaf58394"
    assert digest.shorten(found["tensor"]) == "81cad64924b9"
    assert found["shape"] == [3, 192, 320]
    assert len(found["values"]) == 96
    assert json.loads(digest.canonical_json(found)) == found


def feed(image: np.ndarray) -> np.ndarray:
    return preprocess(image, SPEC)[0]


def bgr(image: np.ndarray) -> np.ndarray:
    return feed(image[..., ::-1])


def raw_pixels(image: np.ndarray) -> np.ndarray:
    return feed(image) * 0.25 * 255 + 0.45 * 255


def wrong_mean(image: np.ndarray) -> np.ndarray:
    return preprocess(image, Preprocessing(mean=(0.485, 0.456, 0.406)))[0]


def wrong_std(image: np.ndarray) -> np.ndarray:
    return preprocess(image, Preprocessing(std=(0.229, 0.224, 0.225)))[0]


def channels_last(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(feed(image), 0, -1)


def channels_last_memory(image: np.ndarray) -> np.ndarray:
    """Pixels as they lie in memory, read as if they were planes."""
    return np.ascontiguousarray(np.moveaxis(feed(image), 0, -1)).reshape(3, 192, 320)


def stretched(image: np.ndarray) -> np.ndarray:
    return normalise(np.resize(letterbox(image, SPEC)[0][::-1], (192, 320, 3)), SPEC)


MISTAKES = [
    (bgr, "BGR instead of RGB"),
    (raw_pixels, "0 to 255"),
    (wrong_mean, "another mean, std or scale"),
    (wrong_std, "another mean, std or scale"),
    (channels_last, "shape"),
    (channels_last_memory, "memory order"),
    (stretched, "another resize"),
]


@pytest.mark.parametrize(
    ("wrong", "message"), MISTAKES, ids=lambda value: getattr(value, "__name__", "")
)
def test_preprocessing_mistakes_are_detected_and_named(wrong, message: str) -> None:
    expected = preprocessing.golden_values(SPEC)
    preprocessing.check_preprocessing(feed, SPEC, expected=expected)
    with pytest.raises(ContractError, match=message):
        preprocessing.check_preprocessing(wrong, SPEC, expected=expected)


def test_rounding_differences_of_another_resizer_are_accepted() -> None:
    expected = preprocessing.golden_values(SPEC)
    off = 0.4 * SPEC.scale / min(SPEC.std)
    preprocessing.check_preprocessing(
        lambda image: feed(image) + np.float32(off), SPEC, expected=expected
    )


def test_golden_values_of_another_contract_are_rejected() -> None:
    other = preprocessing.golden_values(Preprocessing(pad=0))
    with pytest.raises(ContractError, match="another preprocessing contract"):
        preprocessing.check_preprocessing(feed, SPEC, expected=other)
    with pytest.raises(ContractError, match="cannot be read"):
        preprocessing.check_metadata({preprocessing.CHECK_KEY: "{]"}, SPEC)
    preprocessing.check_metadata({}, SPEC)  # files from before it was written


def test_input_outside_the_contract_is_rejected() -> None:
    batch = feed(preprocessing.golden_image())[None]
    assert preprocessing.require_input(batch, SPEC) is batch
    for wrong, message in (
        (np.moveaxis(batch, 1, -1), r"\[1, 192, 320, 3\]"),
        (batch.astype(np.float64), "float64"),
        (raw_pixels(preprocessing.golden_image())[None], "scale, mean and std"),
        (batch * np.float32(np.nan), "scale, mean and std"),
    ):
        with pytest.raises(ContractError, match=message):
            preprocessing.require_input(wrong, SPEC)


def test_non_contiguous_input_is_copied() -> None:
    batch = feed(preprocessing.golden_image())[None]
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(batch, 1, -1)), -1, 1)
    assert not strided.flags.c_contiguous
    laid = preprocessing.require_input(strided, SPEC)
    assert laid.flags.c_contiguous
    assert (laid == batch).all()
