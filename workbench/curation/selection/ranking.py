"""Mining queries, and the rankings of a pool that answer them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.embedding.encoders import Encoder, tile_boxes
from workbench.curation.signals.probe import Answers
from workbench.curation.signals.rarity import (
    DEFAULT_SIGNALS_WITH_WORDS,
    RarityScores,
    score_rarity,
)
from workbench.curation.signals.similarity import Exemplar, SimilarityScores
from workbench.curation.signals.single_model import OBJECT_SIZES, object_size, rank_within
from workbench.curation.signals.words import Word, WordEvidence
from workbench.records.base import Ref
from workbench.records.frames import Frame

__all__ = ["MiningQuery", "parse_exemplar"]

_Box = tuple[float, float, float, float]
_TYPICAL_REASON = "in the middle of a cluster, and almost nothing is labelled yet"
_MIN_REASON_RANK = 0.75
"""Rank from which on a signal is given as a reason."""


@short_repr
@dataclass(frozen=True)
class MiningQuery:
    """What to mine for, where it is not simply rarity.

    Attributes:
        like: Exemplars to find more of; any frames of the dataset.
        unlike: What results should not be like.
        answers: Rounds of yes and no to what the search had found, see `SteeredSearch`.
        text: What results should show; the encoder must have a text tower.
        other_models: Checkpoints whose disagreement with the model counts as a signal.
        watch: Words of the watch list of the signal ``watch``; by default the one for roads.
        encoder: Encoder to use; by default the model's own features.
        signals: Signals that rank the pool; by default those of `score_rarity`.
    """

    like: tuple[Exemplar, ...] = ()
    unlike: tuple[Exemplar, ...] = ()
    answers: tuple[Answers, ...] = ()
    text: str | None = None
    watch: tuple[Word, ...] = ()
    other_models: tuple[Ref, ...] = ()
    encoder: Encoder | None = None
    signals: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether frames are searched by content instead of ranked by rarity."""
        return bool(self.like) or self.text is not None

    @property
    def frames(self) -> tuple[str, ...]:
        """Frames of the exemplars and of the answers."""
        answered = (frame for one in self.answers for frame in (*one.yes, *one.no))
        exemplars = (one.frame for one in (*self.like, *self.unlike))
        return tuple(dict.fromkeys((*exemplars, *answered)))

    def as_json(self) -> dict[str, Any]:
        """The part of the query that a Selection record keeps."""
        content: dict[str, Any] = {
            "like": [_exemplar_json(one) for one in self.like],
            "unlike": [_exemplar_json(one) for one in self.unlike],
            "answers": [{"yes": list(one.yes), "no": list(one.no)} for one in self.answers],
            "text": self.text,
            "watch": [word.text for word in self.watch],
            "other_models": list(self.other_models),
        }
        return {key: value for key, value in content.items() if value}


@dataclass(frozen=True)
class Ranking:
    """``n`` frames ranked, in the order of their embeddings.

    Attributes:
        score: Float64 ``[n]`` in [0, 1], 1 is best.
        ranks: Float64 ``[n, s]``, a column for each of ``names``.
        names: The signals.
        condition: Group that each frame was compared with.
        lead: First reason, see `candidates.Candidates`.
        reasons: Further reasons of the frame in a row.
        method: The method in one line, for the record.
        parameters: Further parameters, for the record.
        box: Where the frame in a row shows what it was ranked for (x, y, w, h, pixels), if that is
            a part of it.
    """

    score: NDArray[np.float64]
    ranks: NDArray[np.float64]
    names: tuple[str, ...]
    condition: tuple[str, ...]
    lead: str
    reasons: Callable[[int], tuple[str, ...]]
    method: str
    parameters: Json
    box: Callable[[int], _Box | None] = lambda row: None

    def signals(self, row: int) -> dict[str, float]:
        """The frame's rank by each signal."""
        ranks = self.ranks[row].tolist()
        return {name: round(rank, 6) for name, rank in zip(self.names, ranks, strict=True)}


def rank_by_rarity(  # noqa: PLR0913 - what is compared, and how
    pool: Embeddings,
    labelled: Embeddings | None,
    conditions: Sequence[str],
    known_conditions: Sequence[str],
    *,
    drives: Sequence[str],
    typical: bool,
    signals: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    other_models: Sequence[Embeddings] = (),
    watch_list: Sequence[Word] = (),
) -> Ranking:
    """Rank a pool by rarity within condition, or by typicality.

    Args:
        pool: The frames to rank.
        labelled: What is labelled already.
        conditions: Condition of each frame of the pool.
        known_conditions: Condition of each labelled frame.
        drives: Drive of each frame of the pool.
        typical: Put the centre of each cluster first, because with almost nothing labelled no
            frame can be called rare. Not with a watch list, which needs no labels.
        signals: Signals to use; by default those of `score_rarity`.
        weights: Their weights; by default those of `score_rarity`.
        other_models: The pool embedded by other models.
        watch_list: Words to look for; by default they then are what ranks.
    """
    if watch_list and not signals:
        signals = (*DEFAULT_SIGNALS_WITH_WORDS, *(("disagreement",) if other_models else ()))
    typical = typical and "watch" not in signals
    scores = score_rarity(
        pool,
        labelled,
        conditions,
        known_conditions=known_conditions,
        signals=("typicality",) if typical else (signals or None),
        weights=weights,
        other_models=() if typical else other_models,
        drives=drives,
        watch_list=watch_list,
    )
    shares = zip(scores.names, scores.weights, strict=True)
    adjective = "most typical" if typical else "rarest"
    return Ranking(
        score=scores.fused,
        ranks=scores.ranks,
        names=scores.names,
        condition=scores.condition,
        lead=adjective + " {percent} % among {condition} frames",
        reasons=lambda row: (_TYPICAL_REASON,) if typical else _rarity_reasons(pool, scores, row),
        method="typicality within cluster: almost nothing is labelled"
        if typical
        else f"{' + '.join(scores.names)}, ranked within condition",
        parameters={"signals": {name: round(weight, 6) for name, weight in shares}},
        box=lambda row: None if scores.watched is None else _word_box(pool, scores.watched, row),
    )


def rank_at_random(conditions: Sequence[str], seed: int) -> Ranking:
    """Rank a pool at random, where no signal is known to beat chance.

    Args:
        conditions: Condition of each frame of the pool.
        seed: Of the order.
    """
    order = np.random.default_rng([seed, len(conditions)]).permutation(len(conditions))
    score = (order + 0.5) / len(conditions)
    return Ranking(
        score=score,
        ranks=score[:, None],
        names=("random",),
        condition=tuple(conditions),
        lead="drawn at random: no signal beats chance on the labelled frames",
        reasons=lambda row: (),
        method="random: no signal beats chance on the labelled frames",
        parameters={"signals": {"random": 1.0}},
    )


def rank_by_words(
    pool: Embeddings, evidence: WordEvidence, words: Sequence[Word], conditions: Sequence[str]
) -> Ranking:
    """Rank a pool by the evidence for the words of a search.

    Args:
        pool: The frames that were searched.
        evidence: Result of `word_evidence`.
        words: What was searched for.
        conditions: Condition of each frame.
    """
    score = rank_within(evidence.value, ["all"] * len(conditions))
    return Ranking(
        score=score,
        ranks=score[:, None],
        names=("words",),
        condition=tuple(conditions),
        lead="among the {percent} % of the pool that show most of the words",
        reasons=lambda row: (_word_reason(pool, evidence, words, row),),
        method=f"words: {', '.join(word.text for word in words)}",
        parameters={"signals": {"words": 1.0}},
        box=lambda row: _word_box(pool, evidence, row),
    )


def _word_reason(pool: Embeddings, evidence: WordEvidence, words: Sequence[Word], row: int) -> str:
    x, y, w, h = _word_box(pool, evidence, row)
    return (
        f"may show {words[int(evidence.word[row])].text!r} around "
        f"x {x + w / 2:.0f}, y {y + h / 2:.0f} px"
    )


def _word_box(pool: Embeddings, evidence: WordEvidence, row: int) -> _Box:
    """The region that shows a word most: its tile, x, y, w, h in pixels."""
    size = pool.tiles.sizes[row : row + 1]
    x1, y1, x2, y2 = tile_boxes(pool.words.grid, size)[0, int(evidence.tile[row])].tolist()
    return (round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1))


def rank_by_similarity(
    similarity: SimilarityScores,
    rows: Sequence[int],
    conditions: Sequence[str],
    is_exemplar: Sequence[bool],
    text: str | None = None,
    confirmed: Sequence[bool] = (),
) -> Ranking:
    """Rank a pool by similarity to exemplars or to a text; exemplars of the pool come first.

    Args:
        similarity: Of frames that include the pool's.
        rows: Row in ``similarity`` of each frame of the pool.
        conditions: Condition of each frame of the pool.
        is_exemplar: Whether a frame of the pool is an exemplar's own.
        text: The search text, if any.
        confirmed: Whether a frame of the pool was answered with yes; such frames come next.
    """
    values = similarity.score[np.asarray(rows)]
    agreed = np.array(confirmed, bool) if len(confirmed) else np.zeros(len(values), bool)
    # Exemplars and confirmed frames rank above every cosine, because they are to be labelled, too.
    values = np.where(is_exemplar, 3.0, np.where(agreed, 2.0, values))
    score = rank_within(values, ["all"] * len(values))

    def reasons(row: int) -> tuple[str, ...]:
        if is_exemplar[row]:
            return ("the exemplar itself",)
        if agreed[row]:
            return ("confirmed by a person",)
        reason = similarity.reason(int(rows[row]))
        return (reason if text is None else reason.replace("exemplar", f"“{text}”"),)

    return Ranking(
        score=score,
        ranks=score[:, None],
        names=("likeness",),
        condition=tuple(conditions),
        lead="among the {percent} % of the pool most similar to the query",
        reasons=reasons,
        method="similarity to the query",
        parameters={"signals": {"likeness": 1.0}},
    )


def _rarity_reasons(pool: Embeddings, scores: RarityScores, row: int) -> tuple[str, ...]:
    """Reasons from the signals with a high rank, strongest first."""
    texts: dict[str, str] = {}
    if uncertain := int(scores.uncertain[row]):
        texts["entropy"] = f"{uncertain} box{'es' * (uncertain > 1)} the model is uncertain of"
    oddest = int(scores.oddest[row])
    if oddest >= 0:
        size = OBJECT_SIZES[int(object_size(pool.boxes[oddest : oddest + 1])[0])][0]
        cls = pool.class_names[int(pool.classes[oddest])].replace("_", " ")
        texts["objects"] = f"a {size} {cls} unlike the labelled ones"
        texts["novelty"] = f"a {size} object ({cls}?) unlike any labelled one"
    if scores.watched is not None:
        texts["watch"] = _word_reason(pool, scores.watched, scores.watch_list, row)
    texts["doubt"] = "a large box with a low score"
    texts["frame"] = "a scene unlike the labelled ones"
    if len(scores.oddest_tile) and scores.oddest_tile[row] >= 0:
        where = _tile_position(pool, int(scores.oddest_tile[row]))
        texts["tiles"] = f"something {where} unlike what is labelled there"
    if len(scores.unmatched) and (unmatched := int(scores.unmatched[row])):
        texts["disagreement"] = (
            f"{unmatched} box{'es' * (unmatched > 1)} found by one of the models only"
        )
    order = sorted(range(len(scores.names)), key=lambda signal: -scores.ranks[row, signal])
    strong = (scores.names[s] for s in order if scores.ranks[row, s] >= _MIN_REASON_RANK)
    return tuple(texts[name] for name in strong if name in texts)


def _tile_position(pool: Embeddings, tile: int) -> str:
    """Position of a tile in its image, in words."""
    frame = tile // pool.tiles.per_frame
    width, height = pool.tiles.sizes[frame]
    x1, y1, x2, y2 = pool.tiles.boxes[tile]
    across = ("on the left", "in the middle", "on the right")[
        min(2, int(3 * (x1 + x2) / 2 / width))
    ]
    upright = ("above", "", "below")[min(2, int(3 * (y1 + y2) / 2 / height))]
    return f"{across} {upright}".strip()


def parse_exemplar(frames: Sequence[Frame], text: str) -> Exemplar:
    """Parse an exemplar: ``FRAME`` or ``FRAME:x,y,w,h``.

    Args:
        frames: Frames to search.
        text: A frame's digest, its first digits, or ``DRIVE@INDEX``; optionally a box in pixels of
            the frame.

    Raises:
        ParameterError: No frame or several match, or the box is invalid.
    """
    name, _, box = text.rpartition(":") if text.count(",") == 3 else (text, "", "")
    frame = _find_frame(frames, name)
    if not box:
        return Exemplar(frame.id)
    try:
        x, y, w, h = (float(number) for number in box.split(","))
    except ValueError as error:
        raise ParameterError("invalid box", where=text, hint="Write x,y,w,h in pixels") from error
    inside = 0 <= x < frame.width and 0 <= y < frame.height
    if not (inside and w > 0 and h > 0 and x + w <= frame.width and y + h <= frame.height):
        raise ParameterError(
            "the exemplar's box exceeds the image",
            where=text,
            hint=f"The image has {frame.width} x {frame.height} pixels; a box is x,y,w,h",
        )
    return Exemplar(frame.id, (x, y, w, h))


def _find_frame(frames: Sequence[Frame], name: str) -> Frame:
    drive, at, index = name.rpartition("@")
    if at and index.isdecimal():
        matches = [one for one in frames if one.drive == drive and one.index == int(index)]
        similar = [
            f"{one.drive}@{one.index}" for one in _closest_indices(frames, drive, int(index))
        ]
    else:
        matches = [one for one in frames if name and one.id.startswith(name.lower())]
        similar = [one.id[:12] for one in _closest_digests(frames, name.lower())]
    if len(matches) == 1:
        return matches[0]
    if matches:
        examples = ", ".join(one.id[: len(name) + 4] for one in matches[:5])
        raise ParameterError(
            f"ambiguous frame: {len(matches)} matches, such as {examples}",
            where=name,
            hint="Give more digits",
        )
    raise ParameterError(
        f"unknown frame: none of {len(frames)} matches",
        where=name or "an empty name",
        hint=f"Closest: {', '.join(similar)}. Give a digest, its first digits, or DRIVE@INDEX",
    )


def _closest_digests(frames: Sequence[Frame], name: str) -> list[Frame]:
    """Frames whose digests share most first digits with ``name``."""

    def shared(frame: Frame) -> int:
        pairs = zip(frame.id, name, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(name))

    return sorted(frames, key=lambda one: (-shared(one), one.id))[:3]


def _closest_indices(frames: Sequence[Frame], drive: str, index: int) -> list[Frame]:
    same = [one for one in frames if one.drive == drive] or list(frames)
    return sorted(same, key=lambda one: (abs(one.index - index), one.drive))[:3]


def _exemplar_json(one: Exemplar) -> dict[str, Any]:
    return {"frame": one.frame, **({"box": list(one.box)} if one.box else {})}
