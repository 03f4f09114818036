"""A picture anyone can make and the tensor it must become: the preprocessing contract, checked.

A car's own preprocessing is other code on another chip. A wrong colour order, scale, mean or
memory layout raises no error there and costs most of the accuracy. So every model file carries a
few values of the tensor that a picture given by a formula must become, and whoever feeds the model
can be held to them: this machine's code when a model is loaded, a team's own in its tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.errors import ContractError
from workbench.perception.preprocessing import Pixels, Preprocessing, prepare

CHECK_KEY = "workbench.preprocessing.check"
HEIGHT, WIDTH = 360, 500
"""Of the picture: neither side fits a network's input, so that resizing and padding are seen."""

_VALUES = 96
_STEP = 0.6
"""Share of one 8-bit step that a value may be off: rounding may differ, a formula may not."""

Tensor = NDArray[np.float32]


def picture() -> Pixels:
    """The picture: red ``7y + 3x``, green ``xy / 5``, blue ``11x - 2y``, each whole and mod 256."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    planes = (rows * 7 + columns * 3, rows * columns // 5, columns * 11 - rows * 2)
    return np.stack(planes, axis=-1).astype(np.uint8)


def vector(spec: Preprocessing) -> dict[str, Any]:
    """What a model file says of the tensor: some of its values, with their places, as plain JSON.

    ``values`` has rows ``[channel, row, column, value]``; ``tensor`` is the digest of all values as
    float32 in C order, which other implementations need not reach.
    """
    tensor, _ = prepare(picture(), spec)
    flat = np.linspace(0, tensor.size - 1, _VALUES).astype(int)
    places = np.stack(np.unravel_index(flat, tensor.shape), axis=1)
    values = [[*place, round(float(tensor[tuple(place)]), 5)] for place in places.tolist()]
    return {
        "contract": spec.digest,
        "picture": {
            "height": HEIGHT,
            "width": WIDTH,
            "sha256": digest.of_bytes(picture().tobytes()),
        },
        "shape": list(tensor.shape),
        "tensor": digest.of_bytes(tensor.tobytes()),
        "values": values,
    }


def check(
    feed: Callable[[Pixels], Tensor], spec: Preprocessing, *, expected: Mapping[str, Any]
) -> None:
    """Hold an implementation of the preprocessing to a model's check vector.

    Args:
        feed: RGB uint8 ``[height, width, 3]`` to float32 ``[3, height, width]``.
        spec: The contract that the model carries.
        expected: Of `vector`, as the model carries it.

    Raises:
        ContractError: Saying in which way the tensor is wrong, as far as that can be told.
    """
    if expected.get("contract") != spec.digest:
        raise ContractError(
            "model file carries a check of another preprocessing contract than its own",
            hint="Its metadata was changed after export: export it again",
        )
    found = feed(picture())
    if tuple(found.shape) != tuple(expected["shape"]):
        raise ContractError(
            f"preprocessing gives shape {list(found.shape)}, the model takes {expected['shape']}",
            hint="The layout is channels first: red, green and blue planes",
        )
    rows = np.array(expected["values"], np.float64)
    places = rows[:, :3].astype(int)
    values = np.asarray(found)[places[:, 0], places[:, 1], places[:, 2]].astype(np.float64)
    allowed = _STEP * spec.scale / min(spec.std)
    apart = float(np.abs(values - rows[:, 3]).max())
    if not apart <= allowed:
        raise ContractError(
            f"preprocessing is up to {apart:.3g} off the model's golden tensor, {allowed:.2g} "
            f"allowed: {_guess(values, rows, np.asarray(found), spec, allowed)}",
            hint="Feed the model as its preprocessing contract says",
        )


def check_metadata(metadata: Mapping[str, str], spec: Preprocessing) -> None:
    """Hold this machine's own preprocessing to what a model file expects.

    Files from before the check vector was written have none and are not held to it.

    Raises:
        ContractError: It gives another tensor, or the vector cannot be read.
    """
    if CHECK_KEY not in metadata:
        return
    try:
        expected = json.loads(metadata[CHECK_KEY])
        check(lambda image: prepare(image, spec)[0], spec, expected=expected)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ContractError("preprocessing check in the model file cannot be read") from error


def span(spec: Preprocessing) -> tuple[float, float]:
    """Smallest and largest value that the contract can give from 8-bit pixels."""
    ends = [
        (level * spec.scale - mean) / std
        for level in (0, 255)
        for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    return min(ends), max(ends)


def require_input(batch: NDArray[Any], spec: Preprocessing, *, where: object = None) -> Tensor:
    """The batch, in memory as networks expect it, if it can have come from the contract.

    Raises:
        ContractError: Not float32 ``[n, 3, height, width]`` (channels last, say), or values that
            no 8-bit pixel gives (0 to 255, say, or not numbers).
    """
    shape = (3, spec.height, spec.width)
    if batch.ndim != 4 or batch.shape[1:] != shape or batch.dtype != np.float32:
        raise ContractError(
            f"network input is {batch.dtype} {list(batch.shape)}, expected float32 "
            f"[n, {', '.join(map(str, shape))}]",
            where=where,
            hint="The layout is channels first (NCHW)",
        )
    low, high = span(spec)
    slack = 1e-3 * (high - low)
    if batch.size and not (batch.min() >= low - slack and batch.max() <= high + slack):
        raise ContractError(
            f"network input lies in [{batch.min():.3g}, {batch.max():.3g}], the contract can only "
            f"give [{low:.3g}, {high:.3g}]",
            where=where,
            hint="Were pixels fed without scale, mean and std?",
        )
    return np.ascontiguousarray(batch)


def _guess(
    values: NDArray[np.float64],
    rows: NDArray[np.float64],
    found: NDArray[Any],
    spec: Preprocessing,
    allowed: float,
) -> str:
    """The classic mistakes, each tried."""
    if values.max() > 10 * span(spec)[1]:
        return "its values are far out of range, as of pixels from 0 to 255"
    swapped = found[::-1]
    places = rows[:, :3].astype(int)
    turned = swapped[places[:, 0], places[:, 1], places[:, 2]]
    if np.abs(turned - rows[:, 3]).max() <= allowed * 2:
        return "its colour planes are in the order BGR instead of RGB"
    if _affine(values, rows, allowed):
        return "another mean, std or scale was used"
    return "another resize, padding or order of memory was used"


def _affine(values: NDArray[np.float64], rows: NDArray[np.float64], allowed: float) -> bool:
    """Whether every plane is the right one but for a factor and a shift."""
    for plane in np.unique(rows[:, 0]):
        mine = rows[:, 0] == plane
        design = np.stack([values[mine], np.ones(int(mine.sum()))], axis=1)
        solution, *_ = np.linalg.lstsq(design, rows[mine, 3], rcond=None)
        if np.abs(design @ solution - rows[mine, 3]).max() > allowed * max(1, abs(solution[0])):
            return False
    return True
