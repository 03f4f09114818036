"""Ranking: a pool's frames in one order, whatever was asked for, with the words for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation import finding
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.finding import Likeness, Scores
from workbench.curation.finding.ranks import rank_within
from workbench.curation.finding.signals import SIZES, size_of

_SPEAKS = 0.75
"""Rank from which on a signal is worth a word."""


@dataclass(frozen=True)
class Ranking:
    """``n`` frames in the order of their embeddings.

    Attributes:
        score: Float64 ``[n]`` in [0, 1], 1 first.
        ranks: Float64 ``[n, s]``, a column for each of ``names``.
        condition: What each frame was compared with.
        lead: The first reason, see `candidates.Candidates`.
        why: Row to further reasons.
        method: The way in a line, for the record.
        shaped: What else shaped it, for the record.
    """

    score: NDArray[np.float64]
    ranks: NDArray[np.float64]
    names: tuple[str, ...]
    condition: tuple[str, ...]
    lead: str
    why: Callable[[int], tuple[str, ...]]
    method: str
    shaped: Mapping[str, Any]

    def signals(self, row: int) -> dict[str, float]:
        """The frame's rank by each signal."""
        ranks = self.ranks[row].tolist()
        return {name: round(rank, 6) for name, rank in zip(self.names, ranks, strict=True)}


def by_rarity(pool: Embeddings, scores: Scores) -> Ranking:
    """Rarest first, within condition."""
    return Ranking(
        score=scores.fused,
        ranks=scores.ranks,
        names=scores.names,
        condition=scores.condition,
        lead="rarest {percent} % among {condition} frames",
        why=lambda row: _rare(pool, scores, row),
        method=f"{' + '.join(scores.names)}, ranked within condition",
        shaped=_shaped(scores),
    )


def by_typicality(pool: Embeddings, scores: Scores) -> Ranking:
    """The middle of each cluster first: with next to nothing labelled, nothing can be told rare."""
    reason = "in the middle of a cluster, and almost nothing is labelled yet"
    return Ranking(
        score=scores.fused,
        ranks=scores.ranks,
        names=scores.names,
        condition=scores.condition,
        lead="most typical {percent} % among {condition} frames",
        why=lambda row: (reason,),
        method="typicality within cluster, for almost nothing is labelled",
        shaped=_shaped(scores),
    )


def by_likeness(
    likeness: Likeness,
    rows: Sequence[int],
    conditions: Sequence[str],
    given: Sequence[bool],
    text: str | None = None,
) -> Ranking:
    """Most like the exemplars, or the words, first; exemplars of the pool itself before all.

    Args:
        likeness: Of frames among which the pool's are ``rows``.
        given: Whether a frame of the pool is an exemplar's own.
        text: The words, where they were words.
    """
    values = likeness.score[np.asarray(rows)]
    # Above every cosine: who shows a frame wants that one labelled, too.
    score = rank_within(np.where(given, 2.0, values), ["all"] * len(values))

    def why(row: int) -> tuple[str, ...]:
        if given[row]:
            return ("the exemplar itself",)
        said = likeness.why(int(rows[row]))
        return (said if text is None else said.replace("exemplar", f"“{text}”"),)

    return Ranking(
        score=score,
        ranks=score[:, None],
        names=("likeness",),
        condition=tuple(conditions),
        lead="among the {percent} % of the pool most like what was asked for",
        why=why,
        method="likeness to what was asked for",
        shaped={"signals": {"likeness": 1.0}},
    )


def rarity(
    pool: Embeddings,
    labelled: Embeddings | None,
    conditions: Sequence[str],
    known_conditions: Sequence[str],
    *,
    drives: Sequence[str],
    typical: bool,
    signals: Sequence[str] = (),
    other_models: Sequence[Embeddings] = (),
) -> Ranking:
    """Rank a pool by rarity, or with ``typical`` by the contrary."""
    scores = finding.score(
        pool,
        labelled,
        conditions,
        known_conditions=known_conditions,
        signals=("typicality",) if typical else (signals or None),
        other_models=() if typical else other_models,
        drives=drives,
    )
    return by_typicality(pool, scores) if typical else by_rarity(pool, scores)


def _shaped(scores: Scores) -> dict[str, Any]:
    weights = scores.weights or (1 / len(scores.names),) * len(scores.names)
    return {"signals": {n: round(w, 6) for n, w in zip(scores.names, weights, strict=True)}}


def _rare(pool: Embeddings, scores: Scores, row: int) -> tuple[str, ...]:
    """The signals that speak for a frame, strongest first."""
    words: dict[str, str] = {}
    if unsure := int(scores.unsure[row]):
        words["entropy"] = f"{unsure} box{'es' * (unsure > 1)} the model is unsure of"
    odd = int(scores.oddest[row])
    if odd >= 0:
        size = SIZES[int(size_of(pool.boxes[odd : odd + 1])[0])][0]
        cls = pool.class_names[int(pool.classes[odd])].replace("_", " ")
        words["objects"] = f"a {size} {cls} unlike the labelled ones"
        words["novelty"] = f"a {size} thing ({cls}?) unlike any labelled one"
    words["doubt"] = "a large box that the model hardly believes"
    words["frame"] = "a scene unlike the labelled ones"
    if len(scores.oddest_tile) and scores.oddest_tile[row] >= 0:
        where = _where(pool, int(scores.oddest_tile[row]))
        words["tiles"] = f"something {where} unlike what is labelled there"
    if len(scores.alone) and (alone := int(scores.alone[row])):
        words["disagreement"] = f"{alone} box{'es' * (alone > 1)} only one of the models sees"
    order = sorted(range(len(scores.names)), key=lambda signal: -scores.ranks[row, signal])
    speaking = (scores.names[s] for s in order if scores.ranks[row, s] >= _SPEAKS)
    return tuple(words[name] for name in speaking if name in words)


def _where(pool: Embeddings, tile: int) -> str:
    """A tile's place in its picture, in words."""
    frame = tile // pool.tiles.per_frame
    width, height = pool.tiles.sizes[frame]
    x1, y1, x2, y2 = pool.tiles.boxes[tile]
    across = ("on the left", "in the middle", "on the right")[
        min(2, int(3 * (x1 + x2) / 2 / width))
    ]
    upright = ("above", "", "below")[min(2, int(3 * (y1 + y2) / 2 / height))]
    return f"{across} {upright}".strip()
