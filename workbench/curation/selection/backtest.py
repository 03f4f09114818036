"""Backtest: how well each signal would have found what is labelled, had it not been labelled.

Each rare class and condition is hidden in turn. The labelled drives are cut in two halves; each
half is ranked as a pool against the other one, from which the frames that have the hidden kind are
left out. What the detector learned stays, so kinds that it knows look easier than they will be.

A signal's rank r in (0, 1) becomes the evidence ``-log(1 - r)``, whose mean is 1 under chance. That
of frames with the hidden kind is modelled as exponential with mean m (Lehmann's alternative), so
the log likelihood ratio is ``(1 - 1/m)`` times the evidence: that is the signal's weight, and the
weighted sum is `fuse_ranks`. A signal gets no weight unless a lower bound of m over drives exceeds
1. The weights that rank a kind come from other kinds and other drives; otherwise the yield would be
that of the luckiest signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.text import counted
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals.rarity import score_rarity
from workbench.curation.signals.single_model import fuse_ranks, merge_small_groups, rank_within
from workbench.curation.signals.words import Word
from workbench.data import resampling
from workbench.data.slices import describe_conditions
from workbench.records.frames import UNKNOWN, Frame, Label
from workbench.records.types import Backtest, ExpectedYield, SignalLift

__all__ = ()

MIN_DRIVES = 20
"""Labelled drives below which nothing is tested: each half is ranked against the other."""

_MIN_POSITIVES = 5
"""Frames, of as many drives, that a kind needs."""

_MAX_PREVALENCE = 0.2
"""Kinds on more frames than this are not rare."""

_MIN_TOP = 20
"""Frames that a yield is counted in, at least: the share of the ranking is widened to that."""

_MAX_FRAMES = 2000
"""Labelled frames that are ranked, at most: whole drives, by the digest of their names."""

_RESAMPLES = 1000
_CONFIDENCE = 0.95
_PARTS = 5
"""Parts of the drives; the weights that rank one come from the others."""

_DETECTABLE = 1.6
"""Strength that must be detectable before a signal may be called no better than chance. It is that
of a signal with three times as many finds as chance in the first 5 %."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HiddenKind:
    """A class or condition that is hidden, over ``n`` labelled frames.

    Attributes:
        name: As in the record.
        positive: Bool ``[n]``: frames that have it.
        conditions: Condition of each frame in words, without those that are hidden.
        any_of: The kinds that it is a union of; signals' weights are not derived from a union.
    """

    name: str
    positive: NDArray[np.bool_]
    conditions: tuple[str, ...]
    any_of: tuple[str, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether the signals' weights are derived from it."""
        return not self.any_of


@dataclass(frozen=True)
class Signals:
    """The signals to test.

    Attributes:
        names: Their names, see `score_rarity`.
        defaults: Weights to keep where the labelled drives cannot tell.
        given: They were asked for: they keep the weights ``defaults`` whatever is found.
        watch_list: Words of the signal ``watch``.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, float]
    given: bool = False
    watch_list: tuple[Word, ...] = ()


def backtest(
    labelled: Embeddings,
    kinds: Sequence[HiddenKind],
    drives: Sequence[str],
    signals: Signals,
    *,
    share: float,
    learned: Sequence[bool] | None = None,
    other_models: Sequence[Embeddings] = (),
) -> Backtest | None:
    """Measure signals, and the yield of their combination, on labelled frames.

    Args:
        labelled: The ``n`` labelled frames.
        kinds: What is hidden in turn; unusable ones are left out, see `usable`.
        drives: Drive of each frame.
        signals: The signals to test.
        share: Share of the pool that will be mined.
        learned: Whether the model was trained on a frame; ranked apart from the others, because a
            detector is surer of them.
        other_models: The labelled frames embedded by other models.

    Returns:
        None where too few drives are labelled, or no kind is usable.
    """
    kinds = usable(kinds, drives)
    if len(set(drives)) < MIN_DRIVES or not any(kind.counts for kind in kinds):
        return None
    learned = [True] * len(drives) if learned is None else learned
    test = _Test(labelled, drives, signals, learned, other_models)
    ranked = [test.rank(kind) for kind in kinds]
    test.share = min(0.5, max(share, _MIN_TOP / len(drives)))
    counting = [one for one in ranked if one.kind.counts]
    strength, low = test.strengths(counting)
    led_by, weights, reason = _lead(strength, low, signals)
    fixed = None if led_by == "weighed" else weights
    shares = weights / max(float(weights.sum()), 1e-12)
    return Backtest(
        frames=len(drives),
        drives=test.count,
        share=round(test.share, 6),
        led_by=led_by,
        signals=tuple(
            SignalLift(
                signal=name,
                strength=round(float(strength[s]), 4),
                low=round(float(low[s]), 4),
                weight=round(float(shares[s]), 4),
            )
            for s, name in enumerate(signals.names)
        ),
        any_of=tuple(part for kind in kinds for part in kind.any_of),
        expected=tuple(test.expected(one, counting, fixed, led_by) for one in ranked),
        reason=reason,
    )


def usable(kinds: Sequence[HiddenKind], drives: Sequence[str]) -> list[HiddenKind]:
    """Kinds that are rare, and on at least `_MIN_POSITIVES` frames of as many drives."""
    names = np.asarray(drives)
    return [
        kind
        for kind in kinds
        if len(np.unique(names[kind.positive])) >= _MIN_POSITIVES
        and kind.positive.mean() <= _MAX_PREVALENCE
    ]


def _lead(
    strength: _Floats, low: _Floats, signals: Signals
) -> tuple[Literal["weighed", "default", "given", "entropy", "random"], _Floats, str]:
    """What ranks the pool, the signals' weights, and why."""
    own = np.array([signals.defaults.get(name, 0.0) for name in signals.names])
    if signals.given:
        return "given", own, "the signals were given"
    weights = _weights(strength, low)
    if weights.any():
        names = ", ".join(name for name, w in zip(signals.names, weights, strict=True) if w > 0)
        return "weighed", weights, f"beat chance on the labelled drives: {names}"
    margin = float(np.median(strength - low))
    if margin > _DETECTABLE - 1:
        why = "too few labelled frames of rare kinds to test the signals; default weights"
        return "default", own, why
    reason = "no signal beats chance on the labelled drives"
    entropy = np.array([float(name == "entropy") for name in signals.names])
    if (strength * entropy).sum() >= 1:
        return "entropy", entropy, f"{reason}; ranked by entropy, which is not below it"
    return "random", np.zeros(len(own)), f"{reason}; drawn at random"


def _weights(strength: _Floats, low: _Floats) -> _Floats:
    """``1 - 1/m`` where the lower bound of m exceeds 1, else 0."""
    weights: _Floats = np.where(low > 1, 1 - 1 / np.maximum(strength, 1.0), 0.0)
    return weights


@dataclass(frozen=True)
class _RankedKind:
    """Ranks ``[n, s]`` of the signals while a kind was hidden, and the sums that bounds need."""

    kind: HiddenKind
    groups: list[str]
    ranks: _Floats
    evidence: _Floats
    """``[units, s]``: summed evidence of its positive frames by drive."""
    positives: _Floats
    """``[units]``."""


class _Test:
    """The labelled frames, their halves and their drives."""

    def __init__(
        self,
        labelled: Embeddings,
        drives: Sequence[str],
        signals: Signals,
        learned: Sequence[bool],
        other_models: Sequence[Embeddings],
    ) -> None:
        self.labelled, self.signals, self.other_models = labelled, signals, other_models
        self.learned = ["learned" if one else "new" for one in learned]
        self.drives = np.asarray(drives)
        names, self.unit = np.unique(self.drives, return_inverse=True)
        self.count = len(names)
        # By digest, so that neither the order of frames nor that of names decides.
        order = np.argsort([digest.of_json(["backtest", str(name)]) for name in names])
        place = np.empty(self.count, np.int64)
        place[order] = np.arange(self.count)
        self.half, self.part = (place % 2)[self.unit], (place // 2 % _PARTS)[self.unit]
        self.unit_part = place // 2 % _PARTS
        self.draws = resampling.draw_resamples(self.count, _RESAMPLES, 0)
        self.ties = np.argsort([digest.of_json(["tie", frame]) for frame in labelled.frames])
        self.share = 0.0

    def rank(self, kind: HiddenKind) -> _RankedKind:
        """Rank each half as a pool, with the kind hidden."""
        conditions = [
            f"{words}, {own}" for words, own in zip(kind.conditions, self.learned, strict=True)
        ]
        ranks = np.empty((len(self.drives), len(self.signals.names)))
        groups = [""] * len(self.drives)
        for half in (0, 1):
            rows = np.flatnonzero(self.half == half)
            known = np.flatnonzero((self.half != half) & ~kind.positive)
            own = [conditions[row] for row in rows]
            scores = score_rarity(
                self.labelled.take(rows),
                self.labelled.take(known),
                own,
                known_conditions=[conditions[row] for row in known],
                signals=self.signals.names,
                watch_list=self.signals.watch_list,
                other_models=[one.take(rows) for one in self.other_models],
                drives=self.drives[rows].tolist(),
            )
            ranks[rows] = scores.ranks
            for row, group in zip(rows.tolist(), merge_small_groups(own), strict=True):
                groups[row] = f"{half} {group}"
        evidence = -np.log1p(-ranks)
        evidence /= evidence.mean(0)
        return _RankedKind(
            kind,
            groups,
            ranks,
            np.stack([self._by_drive(column * kind.positive) for column in evidence.T], axis=1),
            self._by_drive(kind.positive),
        )

    def _by_drive(self, values: NDArray[np.generic]) -> _Floats:
        return np.bincount(self.unit, weights=values, minlength=self.count).astype(np.float64)

    def strengths(
        self, ranked: Sequence[_RankedKind], without_part: int = -1
    ) -> tuple[_Floats, _Floats]:
        """Strength of each signal and its lower bound, ``[s]`` each.

        Args:
            ranked: The kinds; each counts once.
            without_part: Leave out the drives of this part.
        """
        draws = self.draws * (self.unit_part != without_part)
        sums = np.zeros((len(draws), len(self.signals.names)))
        seen = np.zeros((len(draws), 1))
        for one in ranked:
            positives = (draws @ one.positives)[:, None]
            present = positives > 0
            sums += np.divide(
                draws @ one.evidence, positives, out=np.zeros_like(sums), where=present
            )
            seen += present
        mean = np.divide(sums, seen, out=np.ones_like(sums), where=seen > 0)
        from scipy import stats

        tail = (1 - _CONFIDENCE) / len(self.signals.names)
        error = mean[1:].std(axis=0)
        low: _Floats = mean[0] - stats.t.ppf(1 - tail, self.count - 1) * error
        return mean[0], low

    def expected(
        self,
        one: _RankedKind,
        counting: Sequence[_RankedKind],
        fixed: _Floats | None,
        led_by: str,
    ) -> ExpectedYield:
        """Yield of a kind, ranked by weights of other kinds and drives, or by ``fixed`` ones."""
        score = np.empty(len(self.drives))
        others = [other for other in counting if other is not one]
        for part in range(_PARTS):
            rows = np.flatnonzero(self.part == part)
            weights = fixed if fixed is not None else _weights(*self.strengths(others, part))
            if weights.any():
                score[rows] = fuse_ranks(one.ranks[rows], weights.tolist())
            else:
                score[rows] = -np.log1p(-(self.ties[rows] + 0.5) / len(self.ties))
        place = rank_within(score + 1e-9 * self.ties / len(self.ties), one.groups)
        top = place > 1 - self.share
        return self._yield(one.kind, top if led_by != "random" else np.ones(len(top), bool))

    def _yield(self, kind: HiddenKind, top: NDArray[np.bool_]) -> ExpectedYield:
        hits, looked = self._by_drive(kind.positive & top), self._by_drive(top)
        found, frames = self._by_drive(kind.positive), self._by_drive(np.ones(len(top)))
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = float(hits.sum() / looked.sum())
            lifts = (self.draws @ hits) / (self.draws @ looked)
            lifts /= (self.draws @ found) / (self.draws @ frames)
        low, high = share_interval(hits, looked, self.draws)
        lift_low, lift_high = _percentiles(lifts, self.count)
        prevalence = float(kind.positive.mean())
        exact = _wilson(float(hits.sum()), float(looked.sum()))
        return ExpectedYield(
            kind=kind.name,
            frames=int(kind.positive.sum()),
            prevalence=round(prevalence, 6),
            rate=round(rate, 6),
            low=round(low, 6),
            high=round(high, 6),
            lift=round(rate / prevalence, 4),
            lift_low=round(min(lift_low, exact[0] / prevalence), 4),
            lift_high=round(max(lift_high, exact[1] / prevalence), 4),
        )


def share_interval(hits: _Floats, looked: _Floats, draws: _Floats) -> tuple[float, float]:
    """Interval of a share, 95 %: the wider of that over drives and Wilson's.

    A resample of no finds has no finds, so with few of them the first one is too narrow.

    Args:
        hits: Float64 ``[u]``: frames found in each drive.
        looked: Float64 ``[u]``: frames looked at.
        draws: Resamples ``[r, u]``, see `draw_resamples`.
    """
    exact = _wilson(float(hits.sum()), float(looked.sum()))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = _percentiles((draws @ hits) / (draws @ looked), len(hits))
    return min(low, exact[0]), max(high, exact[1])


def _percentiles(values: _Floats, drives: int) -> tuple[float, float]:
    tail = resampling.expanded_tail(drives, _CONFIDENCE)
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, tail)), float(np.quantile(finite, 1 - tail))


def _wilson(hits: float, count: float) -> tuple[float, float]:
    """Wilson's interval of a share of independent frames."""
    from scipy import stats

    z = float(stats.norm.ppf((1 + _CONFIDENCE) / 2))
    centre = (hits + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * float(np.sqrt(hits * (count - hits) / count + z**2 / 4))
    return max(0.0, centre - half), min(1.0, centre + half)


def hidden_kinds(
    frames: Sequence[Frame], labels: Sequence[Label], classes: Sequence[str], rare: Sequence[str]
) -> list[HiddenKind]:
    """Each class, each light, weather and road works, and the union of the rare classes.

    Args:
        frames: The labelled frames, in the order of their embeddings.
        labels: Their labels.
        classes: Names of the classes.
        rare: Those of the union; the kind is left out for fewer than two.
    """
    row = {frame.id: number for number, frame in enumerate(frames)}
    conditions = tuple(describe_conditions(frame, unknown="all") for frame in frames)
    positive = {cls: np.zeros(len(frames), bool) for cls in classes}
    for label in labels:
        is_truth = label.origin.is_ground_truth and not label.ignore
        if is_truth and label.frame in row and label.cls in positive:
            positive[label.cls][row[label.frame]] = True
    kinds = [HiddenKind(f"class={cls}", found, conditions) for cls, found in positive.items()]
    for key, blank in (("light", UNKNOWN), ("weather", UNKNOWN), ("construction", False)):
        values = [str(getattr(frame.conditions, key)) for frame in frames]
        without = tuple(
            describe_conditions(
                frame.model_copy(
                    update={"conditions": frame.conditions.model_copy(update={key: blank})}
                ),
                unknown="all",
            )
            for frame in frames
        )
        for value in sorted(set(values) - {str(blank)}):
            name = "construction=yes" if key == "construction" else f"{key}={value}"
            kinds.append(HiddenKind(name, np.array([one == value for one in values]), without))
    if len(rare) > 1:
        union = np.any([positive[cls] for cls in rare], axis=0)
        parts = tuple(f"class={cls}" for cls in rare)
        kinds.append(HiddenKind(Backtest.ANY, union, conditions, parts))
    return kinds


def sample_drives(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """At most `_MAX_FRAMES` frames: whole drives, by the digest of their names."""
    by_drive: dict[str, list[Frame]] = {}
    for frame in frames:
        by_drive.setdefault(frame.drive, []).append(frame)
    chosen: list[Frame] = []
    for drive in sorted(by_drive, key=lambda name: digest.of_json(["backtest", name])):
        if chosen and len(chosen) + len(by_drive[drive]) > _MAX_FRAMES:
            break
        chosen += by_drive[drive]
    return tuple(chosen)


def describe_backtest(one: Backtest) -> list[str]:
    """The backtest in a few lines, for the screen."""
    lines = [
        f"backtest on {counted(one.frames, 'labelled frame')} of {counted(one.drives, 'drive')}:"
        f" {one.reason}"
    ]
    for expected in one.expected:
        lines.append(
            f"  {expected.kind}: {expected.rate:.1%} [{expected.low:.1%}, {expected.high:.1%}] of"
            f" the first {one.share:.1%}, {expected.lift:.1f} [{expected.lift_low:.1f},"
            f" {expected.lift_high:.1f}] x chance"
        )
    return lines
