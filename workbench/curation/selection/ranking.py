"""Mining queries, and the rankings of a pool that answer them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.embedding.encoders import Encoder
from workbench.curation.signals import rarity as finding
from workbench.curation.signals.rarity import RarityScores
from workbench.curation.signals.similarity import Exemplar, SimilarityScores
from workbench.curation.signals.single_model import OBJECT_SIZES, object_size, rank_within
from workbench.records.base import Ref
from workbench.records.frames import Frame


@dataclass(frozen=True)
class MiningQuery:
    """What to look for.

    Attributes:
        like: Frames, or boxes on them, of which more is wanted; any frames of the dataset.
        unlike: What it should not be like.
        text: What it should show, in words; the encoder must know words.
        other_models: Checkpoints whose disagreement with the model counts as a signal.
        encoder: Whose vectors to use, by default the model's own.
        signals: Which signals of `workbench.curation.finding` rank the pool; all by default.
    """

    like: tuple[Exemplar, ...] = ()
    unlike: tuple[Exemplar, ...] = ()
    text: str | None = None
    other_models: tuple[Ref, ...] = ()
    encoder: Encoder | None = None
    signals: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether frames are wanted for what they show, not for being rare."""
        return bool(self.like) or self.text is not None

    @property
    def frames(self) -> tuple[str, ...]:
        """The exemplars' frames."""
        return tuple(dict.fromkeys(one.frame for one in (*self.like, *self.unlike)))

    def as_json(self) -> dict[str, Any]:
        """What of it shapes a selection, for the record."""
        said: dict[str, Any] = {
            "like": [_exemplar_json(one) for one in self.like],
            "unlike": [_exemplar_json(one) for one in self.unlike],
            "text": self.text,
            "other_models": list(self.other_models),
        }
        return {key: value for key, value in said.items() if value}


@dataclass(frozen=True)
class SingleTextEncoder:
    """An encoder of many texts, asked for one."""

    model: str
    _encode: Callable[[Sequence[str]], NDArray[np.float32]]

    @classmethod
    def of(cls, encoder: Any) -> SingleTextEncoder:
        """Raises `ParameterError` for an encoder that reads no text."""
        encode = getattr(encoder, "encode_text", None)
        if encode is None:
            raise ParameterError(
                "the encoder has no words",
                where=type(encoder).__name__,
                hint="Give an --encoder with a text tower, such as a folder with CLIP or SigLIP",
            )
        return cls(encoder.model, encode)

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Float32 ``[d]``."""
        vector: NDArray[np.float32] = self._encode([text])[0]
        return vector


def parse_exemplar(frames: Sequence[Frame], written: str) -> Exemplar:
    """An exemplar as people write it: ``FRAME`` or ``FRAME:x,y,w,h``.

    Args:
        frames: Where it is looked for.
        written: A frame's digest or the first digits of it, or ``DRIVE@INDEX``; then a box in
            pixels of the frame.

    Raises:
        ParameterError: No frame or several are meant, or the box is none or lies outside.
    """
    name, _, box = written.rpartition(":") if written.count(",") == 3 else (written, "", "")
    frame = _find_frame(frames, name)
    if not box:
        return Exemplar(frame.id)
    try:
        x, y, w, h = (float(number) for number in box.split(","))
    except ValueError as error:
        raise ParameterError("not a box", where=written, hint="Write x,y,w,h in pixels") from error
    inside = 0 <= x < frame.width and 0 <= y < frame.height
    if not (inside and w > 0 and h > 0 and x + w <= frame.width and y + h <= frame.height):
        raise ParameterError(
            "the exemplar's box leaves the picture",
            where=written,
            hint=f"The frame is {frame.width} x {frame.height} pixels; a box is x,y,w,h",
        )
    return Exemplar(frame.id, (x, y, w, h))


def _find_frame(frames: Sequence[Frame], name: str) -> Frame:
    drive, at, index = name.rpartition("@")
    if at and index.isdigit():
        found = [one for one in frames if one.drive == drive and one.index == int(index)]
        near = [f"{one.drive}@{one.index}" for one in _closest_indices(frames, drive, int(index))]
    else:
        found = [one for one in frames if name and one.id.startswith(name.lower())]
        near = [one.id[:12] for one in _closest_digests(frames, name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(one.id[: len(name) + 4] for one in found[:5])
        raise ParameterError(
            f"{len(found)} frames begin like this: {several}",
            where=name,
            hint="Give more digits",
        )
    raise ParameterError(
        f"none of these {len(frames)} frames is the exemplar that was named",
        where=name or "an empty name",
        hint=f"Nearest names: {', '.join(near)}. A frame is its digest, the first digits of it,"
        " or DRIVE@INDEX",
    )


def _closest_digests(frames: Sequence[Frame], name: str) -> list[Frame]:
    """Those whose names share most first digits with ``name``."""

    def shared(frame: Frame) -> int:
        pairs = zip(frame.id, name, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(name))

    return sorted(frames, key=lambda one: (-shared(one), one.id))[:3]


def _closest_indices(frames: Sequence[Frame], drive: str, index: int) -> list[Frame]:
    same = [one for one in frames if one.drive == drive] or list(frames)
    return sorted(same, key=lambda one: (abs(one.index - index), one.drive))[:3]


def _exemplar_json(one: Exemplar) -> dict[str, Any]:
    return {"frame": one.frame, **({"box": list(one.box)} if one.box else {})}


# ---- Ranking: a pool's frames in one order, whatever was asked for, with the words for each.


_MIN_REASON_RANK = 0.75
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


def _rarity_ranking(pool: Embeddings, scores: RarityScores) -> Ranking:
    """Rarest first, within condition."""
    return Ranking(
        score=scores.fused,
        ranks=scores.ranks,
        names=scores.names,
        condition=scores.condition,
        lead="rarest {percent} % among {condition} frames",
        why=lambda row: _rarity_reasons(pool, scores, row),
        method=f"{' + '.join(scores.names)}, ranked within condition",
        shaped=_signal_parameters(scores),
    )


def _typicality_ranking(pool: Embeddings, scores: RarityScores) -> Ranking:
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
        shaped=_signal_parameters(scores),
    )


def rank_by_similarity(
    likeness: SimilarityScores,
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


def rank_by_rarity(
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
    scores = finding.score_rarity(
        pool,
        labelled,
        conditions,
        known_conditions=known_conditions,
        signals=("typicality",) if typical else (signals or None),
        other_models=() if typical else other_models,
        drives=drives,
    )
    return _typicality_ranking(pool, scores) if typical else _rarity_ranking(pool, scores)


def _signal_parameters(scores: RarityScores) -> dict[str, Any]:
    weights = scores.weights or (1 / len(scores.names),) * len(scores.names)
    return {"signals": {n: round(w, 6) for n, w in zip(scores.names, weights, strict=True)}}


def _rarity_reasons(pool: Embeddings, scores: RarityScores, row: int) -> tuple[str, ...]:
    """The signals that speak for a frame, strongest first."""
    words: dict[str, str] = {}
    if unsure := int(scores.unsure[row]):
        words["entropy"] = f"{unsure} box{'es' * (unsure > 1)} the model is unsure of"
    odd = int(scores.oddest[row])
    if odd >= 0:
        size = OBJECT_SIZES[int(object_size(pool.boxes[odd : odd + 1])[0])][0]
        cls = pool.class_names[int(pool.classes[odd])].replace("_", " ")
        words["objects"] = f"a {size} {cls} unlike the labelled ones"
        words["novelty"] = f"a {size} thing ({cls}?) unlike any labelled one"
    words["doubt"] = "a large box that the model hardly believes"
    words["frame"] = "a scene unlike the labelled ones"
    if len(scores.oddest_tile) and scores.oddest_tile[row] >= 0:
        where = _tile_position(pool, int(scores.oddest_tile[row]))
        words["tiles"] = f"something {where} unlike what is labelled there"
    if len(scores.alone) and (alone := int(scores.alone[row])):
        words["disagreement"] = f"{alone} box{'es' * (alone > 1)} only one of the models sees"
    order = sorted(range(len(scores.names)), key=lambda signal: -scores.ranks[row, signal])
    speaking = (scores.names[s] for s in order if scores.ranks[row, s] >= _MIN_REASON_RANK)
    return tuple(words[name] for name in speaking if name in words)


def _tile_position(pool: Embeddings, tile: int) -> str:
    """A tile's place in its picture, in words."""
    frame = tile // pool.tiles.per_frame
    width, height = pool.tiles.sizes[frame]
    x1, y1, x2, y2 = pool.tiles.boxes[tile]
    across = ("on the left", "in the middle", "on the right")[
        min(2, int(3 * (x1 + x2) / 2 / width))
    ]
    upright = ("above", "", "below")[min(2, int(3 * (y1 + y2) / 2 / height))]
    return f"{across} {upright}".strip()
