"""The golden picture: every classic mistake in feeding a model is found by it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench import digest
from workbench.errors import ContractError
from workbench.perception import golden
from workbench.perception.preprocessing import Preprocessing, fit, normalise, prepare

SPEC = Preprocessing()


def test_the_picture_and_its_tensor_never_change() -> None:
    """Cars hold their own code to these: a change here is a change of every contract."""
    found = golden.vector(SPEC)
    assert digest.short(found["picture"]["sha256"]) == "340ecaf58394"
    assert digest.short(found["tensor"]) == "81cad64924b9"
    assert found["shape"] == [3, 192, 320]
    assert len(found["values"]) == 96
    assert json.loads(digest.canonical_json(found)) == found


def feed(image: np.ndarray) -> np.ndarray:
    return prepare(image, SPEC)[0]


def bgr(image: np.ndarray) -> np.ndarray:
    return feed(image[..., ::-1])


def raw_pixels(image: np.ndarray) -> np.ndarray:
    return feed(image) * 0.25 * 255 + 0.45 * 255


def wrong_mean(image: np.ndarray) -> np.ndarray:
    return prepare(image, Preprocessing(mean=(0.485, 0.456, 0.406)))[0]


def wrong_std(image: np.ndarray) -> np.ndarray:
    return prepare(image, Preprocessing(std=(0.229, 0.224, 0.225)))[0]


def channels_last(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(feed(image), 0, -1)


def channels_last_memory(image: np.ndarray) -> np.ndarray:
    """Pixels as they lie in memory, read as if they were planes."""
    return np.ascontiguousarray(np.moveaxis(feed(image), 0, -1)).reshape(3, 192, 320)


def stretched(image: np.ndarray) -> np.ndarray:
    return normalise(np.resize(fit(image, SPEC)[0][::-1], (192, 320, 3)), SPEC)


MISTAKES = [
    (bgr, "BGR instead of RGB"),
    (raw_pixels, "0 to 255"),
    (wrong_mean, "another mean, std or scale"),
    (wrong_std, "another mean, std or scale"),
    (channels_last, "shape"),
    (channels_last_memory, "order of memory"),
    (stretched, "another resize"),
]


@pytest.mark.parametrize(
    ("wrong", "said"), MISTAKES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_wrong_way_to_feed_a_model_is_found_and_named(wrong, said: str) -> None:
    expected = golden.vector(SPEC)
    golden.check(feed, SPEC, expected=expected)
    with pytest.raises(ContractError, match=said):
        golden.check(wrong, SPEC, expected=expected)


def test_another_resizer_that_rounds_otherwise_is_no_mistake() -> None:
    expected = golden.vector(SPEC)
    off = 0.4 * SPEC.scale / min(SPEC.std)
    golden.check(lambda image: feed(image) + np.float32(off), SPEC, expected=expected)


def test_a_vector_of_another_contract_is_refused() -> None:
    other = golden.vector(Preprocessing(pad=0))
    with pytest.raises(ContractError, match="another preprocessing contract"):
        golden.check(feed, SPEC, expected=other)
    with pytest.raises(ContractError, match="cannot be read"):
        golden.check_metadata({golden.CHECK_KEY: "{]"}, SPEC)
    golden.check_metadata({}, SPEC)  # files from before it was written


def test_a_batch_that_the_contract_cannot_give_is_refused() -> None:
    batch = feed(golden.picture())[None]
    assert golden.require_input(batch, SPEC) is batch
    for wrong, said in (
        (np.moveaxis(batch, 1, -1), r"\[1, 192, 320, 3\]"),
        (batch.astype(np.float64), "float64"),
        (raw_pixels(golden.picture())[None], "without scale"),
        (batch * np.float32(np.nan), "without scale"),
    ):
        with pytest.raises(ContractError, match=said):
            golden.require_input(wrong, SPEC)


def test_planes_that_lie_otherwise_in_memory_are_laid_out_anew() -> None:
    batch = feed(golden.picture())[None]
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(batch, 1, -1)), -1, 1)
    assert not strided.flags.c_contiguous
    laid = golden.require_input(strided, SPEC)
    assert laid.flags.c_contiguous
    assert (laid == batch).all()
