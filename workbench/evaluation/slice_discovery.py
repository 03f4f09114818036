"""Slices where a model fails more than elsewhere, found among many and corrected for the search.

Candidates are combinations of what is known of frames and labels: conditions, attributes, class,
size, occlusion, and groups that the caller names, such as clusters of embeddings. For each, the
share of missed labels inside is compared with that outside. Missing small objects is no news: by
default a label counts with its miss minus the mean of its class and size, so that a finding is
worse than class and size explain.

The drive is the unit of chance: the standard error of a difference comes from sums over drives
(linearised ratios, Binder, "On the Variances of Asymptotically Normal Estimators from Complex
Surveys", International Statistical Review 51, 1983). Looking at a hundred candidates finds
something by chance: the largest of all statistics is compared with its distribution under the null,
simulated with one Gaussian multiplier a drive, which keeps the correlation of overlapping slices
(Chernozhukov, Chetverikov and Kato, "Gaussian Approximations and Multiplier Bootstrap for Maxima",
Annals of Statistics 41, 2013). The chance that any slice is reported where none is worse is at most
``alpha``. Statistics are taken to the normal scale through Student's t, because slices have few
drives.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from workbench.core.errors import ParameterError
from workbench.core.text import counted, html_table
from workbench.core.types import Json
from workbench.data.slices import ALL_FRAMES
from workbench.evaluation.matching import Bools, Floats, match_slice
from workbench.evaluation.metrics import Evaluation
from workbench.records.frames import CONDITION_VALUES, UNKNOWN, Frame, Label, condition_values

__all__ = ["discover_slices"]

_MULTIPLIERS = 2000
_SIZES = ((0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
_HIDDEN = ((0.4, 1.0),)
_KEYS = {
    "light": "environment.illumination",
    "weather": "environment.weather",
    "construction": "scenery.road_works",
    "event": "dynamic.event",
}
_MAX_VALUES = 30
"""An attribute with more values than this is an identifier, no condition."""
_SAME = 0.6
"""Slices that share more of their labels than this (Jaccard) are one finding."""


@dataclass(frozen=True)
class WeakSlice:
    """A slice on which the model misses more than elsewhere.

    Attributes:
        name: Such as ``light=night+class=cyclist``.
        where: Predicate as in a slice file; None where a term is a group of the caller's.
        boxes: Labels inside, on ``drives`` drives and ``frames`` frames.
        miss_rate: Share missed inside; ``elsewhere`` is the share outside.
        excess: Share of misses inside, beyond what class and size explain where that was asked for,
            minus that outside.
        p: Chance of a finding like this anywhere if no slice were worse (corrected).
    """

    name: str
    where: Json | None
    boxes: int
    frames: int
    drives: int
    miss_rate: float
    elsewhere: float
    excess: float
    p: float

    def __str__(self) -> str:
        return (
            f"{self.name}: misses {self.miss_rate:.0%} of {counted(self.boxes, 'label')} on"
            f" {counted(self.drives, 'drive')}, {self.elsewhere:.0%} elsewhere;"
            f" excess {self.excess:+.0%} (p {self.p:.3f})"
        )


@dataclass(frozen=True)
class Discovery:
    """Weak slices, the largest excess first, and how many candidates were looked at."""

    found: tuple[WeakSlice, ...]
    candidates: int
    alpha: float

    def proposals(self) -> str:
        """Entries for pipelines/slices.yaml and pipelines/gates.yaml; bounds are for people to set.

        The proposed bound of each gate is the recall outside the slice.
        """
        slices, gates = ["slices:"], ["gates:"]
        for one in self.found:
            if one.where is None:
                continue
            name = _file_name(one.name)
            said = f"found weak: misses {one.miss_rate:.0%}, elsewhere {one.elsewhere:.0%}"
            slices += [f"  {name}:", f"    help: {json.dumps(said)}"]
            slices += [f"    where: {json.dumps(one.where)}"]
            gates += [
                f"  - name: {name.replace('=', '-').lower()}-recall",
                "    kind: floor",
                "    metric: recall",
                f"    slice: {name}",
                f"    bound: {1 - one.elsewhere:.2f}",
                f"    min_drives: {max(10, one.drives // 2)}",
                "    required: false",
            ]
        return "\n".join(
            ["# for pipelines/slices.yaml", *slices, "", "# for pipelines/gates.yaml", *gates, ""]
        )

    def to_pandas(self) -> Any:
        """One row a weak slice."""
        import pandas as pd

        return pd.DataFrame([vars(one) for one in self.found])

    def _repr_html_(self) -> str:
        rows = [
            [
                *(one.name, f"{one.boxes:,}", f"{one.drives:,}", f"{one.miss_rate:.0%}"),
                *(f"{one.elsewhere:.0%}", f"{one.excess:+.0%}", f"{one.p:.3f}"),
            ]
            for one in self.found
        ]
        title = f"{counted(len(rows), 'weak slice')} among {self.candidates:,} candidates"
        header = ["slice", "labels", "drives", "missed", "elsewhere", "excess", "p"]
        return html_table(title, rows, header)


def discover_slices(
    evaluation: Evaluation,
    groups: Mapping[str, str] | None = None,
    *,
    alpha: float = 0.05,
    min_boxes: int = 200,
    min_drives: int = 10,
    beyond_class_and_size: bool = True,
    seed: int = 0,
) -> Discovery:
    """Find slices of labels that a model misses more often than others.

    Args:
        evaluation: Of the model.
        groups: Frame id to the name of a group, such as ``cluster=7``.
        alpha: Chance that anything is reported where no slice is worse.
        min_boxes: Smaller slices are not looked at.
        min_drives: Nor are those on fewer drives.
        beyond_class_and_size: Whether a miss counts beyond what its class and size explain.
        seed: Of the multipliers.

    Raises:
        ParameterError: ``alpha`` is not in (0, 0.5], or ``min_drives`` is below 10.
    """
    if not 0 < alpha <= 0.5 or min_drives < 10:
        raise ParameterError(
            f"alpha {alpha:g} must be in (0, 0.5] and min_drives {min_drives} at least 10"
        )
    data = evaluation.data
    table = evaluation.tables.get(ALL_FRAMES.name) or match_slice(data, ALL_FRAMES)
    above = table.score >= evaluation.metrics.settings.threshold
    missed = np.array([row < 0 or not above[row] for row in table.matched_by], np.bool_)
    labels = [data.labels[number] for number in table.truth_label]
    frames = [data.frames[number] for number in table.truth_frame]
    drive_names = sorted({frame.drive for frame in frames})
    number = {name: position for position, name in enumerate(drive_names)}
    drive = np.array([number[frame.drive] for frame in frames], np.int64)
    value = missed.astype(np.float64)
    if beyond_class_and_size:
        value = _residuals(value, [(label.cls, _size(label)) for label in labels])

    members = _candidates(frames, labels, groups or {}, drive, min_boxes, min_drives)
    if not members:
        return Discovery((), 0, alpha)
    names = list(members)
    excess, z, influence = _statistics(value, drive, [members[name] for name in names])
    highest = _null_maxima(influence, seed)
    p = [(1 + int((highest >= one).sum())) / (1 + len(highest)) for one in z]
    order = sorted(range(len(names)), key=lambda k: -z[k])
    chosen: list[int] = []
    for k in order:
        if p[k] <= alpha and not any(_same(members[names[k]], members[names[j]]) for j in chosen):
            chosen.append(k)
    found = []
    for k in chosen:
        inside = members[names[k]]
        found.append(
            WeakSlice(
                name="+".join(text for text, _ in names[k]),
                where=_predicate(names[k]),
                boxes=int(inside.sum()),
                frames=len(set(table.truth_frame[inside].tolist())),
                drives=len(set(drive[inside].tolist())),
                miss_rate=float(missed[inside].mean()),
                elsewhere=float(missed[~inside].mean()) if (~inside).any() else 0.0,
                excess=float(excess[k]),
                p=p[k],
            )
        )
    return Discovery(tuple(sorted(found, key=lambda one: -one.excess)), len(names), alpha)


_Part = tuple[str, str]
"""Name of a term, and its predicate as JSON (empty for a group)."""


def _residuals(value: Floats, cells: list[tuple[str, int]]) -> Floats:
    """Values minus the mean of their cell."""
    number = {cell: position for position, cell in enumerate(sorted(set(cells)))}
    of = np.array([number[cell] for cell in cells], np.int64)
    mean = np.bincount(of, value) / np.maximum(1, np.bincount(of))
    rest: Floats = value - mean[of]
    return rest


def _size(label: Label) -> int:
    area = label.box.w * label.box.h
    return next(n for n, (low, high) in enumerate(_SIZES) if low <= area < high)


def _terms(frame: Frame, label: Label, group: str | None, keys: Iterable[str]) -> Iterable[_Part]:
    for key in keys:
        for value in condition_values(frame, key):
            if value != UNKNOWN and (key, value) != ("construction", "no"):
                written = _KEYS.get(key, f"attribute.{key}")
                yield f"{key}={value}", json.dumps({written: value})
    for key, value in label.attributes.items():
        yield f"{key}={value}", json.dumps({f"label.attribute.{key}": value})
    yield f"class={label.cls}", json.dumps({"agent.class": label.cls})
    low, high = _SIZES[_size(label)]
    size = ("small", "medium", "large")[_size(label)]
    yield f"size={size}", json.dumps({"box.area_px2": {"min": low, "max": high}})
    for least, most in _HIDDEN:
        if label.occluded is not None and least <= label.occluded <= most:
            yield "occluded", json.dumps({"label.occluded": {"min": least}})
    if group is not None:
        yield group, ""


def _candidates(
    frames: list[Frame],
    labels: list[Label],
    groups: Mapping[str, str],
    drive: Any,
    min_boxes: int,
    min_drives: int,
) -> dict[tuple[_Part, ...], Bools]:
    """Slices of one term and of two, large enough, each ``[labels]``; equal ones once."""
    keys = [key for key in CONDITION_VALUES if key != "role"] + ["event"]
    seen: dict[str, set[str]] = defaultdict(set)
    for frame in {frame.id: frame for frame in frames}.values():
        for key, value in frame.attributes.items():
            seen[key].add(value)
    keys += sorted(key for key, values in seen.items() if len(values) <= _MAX_VALUES)
    rows: dict[_Part, list[int]] = defaultdict(list)
    for row, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        for term in _terms(frame, label, groups.get(frame.id), keys):
            rows[term].append(row)

    def large(inside: Bools) -> bool:
        count = int(inside.sum())
        return (
            count >= min_boxes
            and len(labels) - count >= min_boxes
            and len(np.unique(drive[inside])) >= min_drives
        )

    single: dict[_Part, Bools] = {}
    for term, members in sorted(rows.items()):
        inside = np.zeros(len(labels), np.bool_)
        inside[members] = True
        if int(inside.sum()) >= min_boxes:
            single[term] = inside
    found: dict[tuple[_Part, ...], Bools] = {}
    known: set[bytes] = set()
    pairs = (((one,), mask) for one, mask in single.items())
    doubles = (
        ((one, other), single[one] & single[other])
        for one, other in combinations(single, 2)
        if one[0].partition("=")[0] != other[0].partition("=")[0]
    )
    for name, mask in (*pairs, *doubles):
        if large(mask) and (packed := np.packbits(mask).tobytes()) not in known:
            known.add(packed)
            found[name] = mask
    return found


def _statistics(value: Floats, drive: Any, members: list[Bools]) -> tuple[Floats, Floats, Floats]:
    """Differences of means, their z statistics, and each drive's standardised influence."""
    from scipy import stats

    drives = int(drive.max()) + 1
    count = np.bincount(drive, minlength=drives).astype(np.float64)
    total = np.bincount(drive, value, minlength=drives)
    excess = np.zeros(len(members))
    z = np.zeros(len(members))
    influence = np.zeros((drives, len(members)))
    for k, inside in enumerate(members):
        n = np.bincount(drive[inside], minlength=drives).astype(np.float64)
        m = np.bincount(drive[inside], value[inside], minlength=drives)
        mean, other = m.sum() / n.sum(), (total - m).sum() / (count - n).sum()
        psi = (m - mean * n) / n.sum() - ((total - m) - other * (count - n)) / (count - n).sum()
        active = int((n > 0).sum())
        error = np.sqrt(active / (active - 1) * (psi**2).sum())
        excess[k] = mean - other
        if error > 0:
            t = stats.t.logsf((mean - other) / error, active - 1)
            z[k] = -stats.norm.ppf(np.exp(t)) if t > -700 else np.inf
            influence[:, k] = psi / np.sqrt((psi**2).sum())
    return excess, z, influence


def _null_maxima(influence: Floats, seed: int) -> Floats:
    """Largest statistic of all candidates in each draw of the multipliers."""
    random = np.random.default_rng(seed)
    draws = random.standard_normal((_MULTIPLIERS, len(influence)))
    maxima: Floats = (draws @ influence).max(axis=1)
    return maxima


def _same(one: Bools, other: Bools) -> bool:
    """Whether two slices are one finding: mostly the same labels, or one inside the other."""
    both = float((one & other).sum())
    return both / float((one | other).sum()) > _SAME or both == float(min(one.sum(), other.sum()))


def _predicate(terms: tuple[_Part, ...]) -> Json | None:
    parts = [json.loads(written) for _, written in terms if written]
    if len(parts) < len(terms):
        return None
    return parts[0] if len(parts) == 1 else {"all": parts}  # type: ignore[no-any-return]


def _file_name(name: str) -> str:
    return name if "+" not in name else name.replace("=", "-").replace("+", "_")
