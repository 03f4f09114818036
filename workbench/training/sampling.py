"""Which frames a pass shows: each once, or rare ones more often.

A pass is drawn from the seed and its number alone. With weights it is drawn systematically: the
frames stand on a line, each as long as its weight, and evenly spaced marks pick them. So a frame
of weight 2.3 is seen two or three times, never none, and a pass is as long as ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ParameterError
from workbench.records.base import Digest
from workbench.records.dataset import Dataset
from workbench.records.frames import UNKNOWN, Frame
from workbench.training.config import Sampling

_ORDER = 1 << 30


def slices_of(frame: Frame) -> set[str]:
    """Names of the slices of conditions and events that a frame is in."""
    conditions = frame.conditions
    names = {f"light={conditions.light}", f"weather={conditions.weather}"}
    names = {name for name in names if not name.endswith(f"={UNKNOWN}")}
    if conditions.construction:
        names.add("construction")
    return names | {f"event={event}" for event in frame.events}


def factors(dataset: Dataset, classes: Collection[str], how: Sampling) -> dict[str, float]:
    """Repeat factors above 1 of classes and slices, such as ``{"class=cyclist": 2.1}``."""
    count = max(1, len(dataset.frames))
    found: dict[str, float] = {}
    for power, named in ((how.classes, _classes(dataset, classes)), (how.slices, _slices(dataset))):
        seen = Counter(name for names in named for name in names)
        for name, frames in sorted(seen.items()):
            factor = min(how.cap, (how.rare / (frames / count)) ** power)
            if factor > 1:
                found[name] = round(factor, 4)
    return found


def weights(
    dataset: Dataset,
    classes: Collection[str],
    how: Sampling,
    *,
    fresh: Collection[Digest] | None = None,
    replay: float = 0.0,
) -> NDArray[np.float64] | None:
    """Relative frequency of each frame, None when all are seen alike.

    Args:
        fresh: Frames that are new; all others are old and share ``replay`` of a pass.

    Raises:
        ParameterError: ``replay`` without both old and new frames.
    """
    if not how.used and replay == 0:
        return None
    result = np.ones(len(dataset.frames))
    if how.used:
        named = factors(dataset, classes, how)
        for row, names in enumerate(
            one | other
            for one, other in zip(_classes(dataset, classes), _slices(dataset), strict=True)
        ):
            result[row] = max((named[name] for name in names if name in named), default=1.0)
    if replay > 0:
        new = np.array([frame.id in (fresh or ()) for frame in dataset.frames])
        if new.all() or not new.any():
            raise ParameterError(
                f"replay of {replay:.0%} needs old and new frames, there are "
                f"{int((~new).sum())} old and {int(new.sum())} new",
                where="TrainingConfig.replay",
                hint="Pass fresh, the ids of the mined frames, and keep old frames in the dataset",
            )
        result[new] *= (1 - replay) / result[new].sum()
        result[~new] *= replay / result[~new].sum()
    return result


def order(
    count: int, slots: int, weights: NDArray[np.float64] | None, seed: int, number: int
) -> NDArray[np.int64]:
    """Frames of pass ``number``, ``[slots]`` numbers below ``count``."""
    rng = np.random.default_rng([seed, number, _ORDER])
    if weights is None:
        return np.resize(rng.permutation(count), slots)
    line = np.cumsum(weights)
    marks = (rng.random() + np.arange(slots)) / slots * line[-1]
    picked = np.minimum(np.searchsorted(line, marks, side="right"), count - 1)
    return rng.permutation(picked)


def _classes(dataset: Dataset, classes: Collection[str]) -> list[set[str]]:
    return [
        {
            f"class={label.cls}"
            for label in dataset.labels_by_frame[frame.id]
            if label.cls in classes and not label.ignore
        }
        for frame in dataset.frames
    ]


def _slices(dataset: Dataset) -> Sequence[set[str]]:
    return [slices_of(frame) for frame in dataset.frames]
