"""Plain words for what a frame shows, answered without a hub by an image classifier.

`Lite0Encoder` keeps, for each of ImageNet's classes, the score of the tile that shows it most. A
word stands for some of these classes: by their own names, or by a table of words met on roads
(``road_words.txt``). Scores of two classes cannot be compared, so each is ranked over the pool.
Not within light: at night less is seen, and ranking within light found fewer rare frames.

A rank r in (0, 1) is the evidence ``-log(1 - r)``. A frame's value for a watch list is the root of
the sum of the squared evidence of its words: one word that is sure counts more than several that
are likely.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.core.text import short_repr
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals.single_model import fuse_ranks, rank_within
from workbench.detection.boxes import CONFIDENCE_THRESHOLD

__all__ = ["Word", "read_watch_list"]

_CLASSES_FILE, _ROADS_FILE, _WATCH_FILE = (
    "imagenet_classes.txt",
    "road_words.txt",
    "watch_roads.txt",
)
_NEAR_WORDS = 5
_WEIGHT = re.compile(r"\s+x(\d+(?:\.\d+)?)$")
_KNOWN_SHARE = 0.5
"""Weight of a word's evidence where a detector has a confident box of the same word."""


@short_repr
@dataclass(frozen=True)
class Word:
    """A word, the classes of the classifier that stand for it, by index, and its weight."""

    text: str
    classes: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class WordEvidence:
    """What ``n`` frames show of some words.

    Attributes:
        value: Float64 ``[n]``, larger is more.
        word: Int64 ``[n]``: index of the word with the strongest evidence.
        tile: Int64 ``[n]``: the tile of the frame it comes from, see `Words`.
    """

    value: NDArray[np.float64]
    word: NDArray[np.int64]
    tile: NDArray[np.int64]


def find_words(text: str, more: Mapping[str, Word] | None = None) -> tuple[Word, ...]:
    """The words of a text, separated by commas.

    Args:
        text: Such as ``motor scooter`` or ``moped, snowplow``.
        more: Further words by their normalised text, which come first.

    Raises:
        ParameterError: A word is unknown; the message names near ones.
    """
    return tuple(_find_word(part, more or {}) for part in text.split(",") if part.strip()) or (
        _find_word("", {}),
    )


def read_watch_list(path: Path | None = None) -> tuple[Word, ...]:
    """The words of a watch list, by default the one for roads.

    Args:
        path: A text or YAML file: one word a line, after ``- `` or not, or ``word: class, class``
            for a word of one's own; ``x2`` at the end of a line counts it twice; ``#`` begins a
            comment.

    Raises:
        DataError: The file cannot be read, or has no words.
        ParameterError: A word is unknown.
    """
    if path is None:
        return _parse_words(_shipped(_WATCH_FILE), _WATCH_FILE, _road_words())
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the watch list: {error}", where=path) from error
    words = _parse_words(text, path, {})
    if not words:
        raise DataError("no words in the watch list", where=path, hint="Write one word a line")
    return words


def watch(pool: Embeddings, words: Sequence[Word]) -> WordEvidence:
    """How much each frame shows of a watch list.

    Args:
        pool: The frames; `pool.words` must have a vocabulary. A word for which a detector has a
            confident box counts half: what it finds already is not missed.
        words: The watch list.
    """
    evidence, tiles = _evidence_by_word(pool, words)
    evidence = evidence * np.array([word.weight for word in words])
    evidence *= np.where(_found(pool, words), _KNOWN_SHARE, 1.0)
    return _combined(np.sqrt((evidence**2).sum(axis=1)), evidence, tiles)


def word_evidence(pool: Embeddings, words: Sequence[Word]) -> WordEvidence:
    """How much each frame shows of the words of a search: of the one it shows most of."""
    evidence, tiles = _evidence_by_word(pool, words)
    return _combined(evidence.max(axis=1), evidence, tiles)


def _combined(
    value: NDArray[np.float64], evidence: NDArray[np.float64], tiles: NDArray[np.int64]
) -> WordEvidence:
    best = evidence.argmax(axis=1)
    return WordEvidence(value, best, tiles[np.arange(len(best)), best])


def _evidence_by_word(
    pool: Embeddings, words: Sequence[Word]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Evidence of each frame for each word, and the tile it comes from, both ``[n, words]``.

    The evidence of a word's classes is summed and ranked again, so that a frame which is among the
    first by one class comes before one that is above average by all.
    """
    if not pool.words.vocabulary:
        raise ParameterError(
            "the pool's encoder knows no words",
            where=pool.model[:12],
            hint="Embed the frames with Lite0Encoder",
        )
    classes = sorted({number for word in words for number in word.classes})
    column = {number: at for at, number in enumerate(classes)}
    everything = ["all"] * len(pool.frames)
    scores, tiles = pool.words.scores(classes), pool.words.tiles(classes)
    ranks = np.stack([rank_within(values, everything) for values in scores.T], axis=1)
    evidence = np.empty((len(scores), len(words)))
    where = np.empty((len(scores), len(words)), np.int64)
    for number, word in enumerate(words):
        own = [column[one] for one in word.classes]
        fused = fuse_ranks(ranks[:, own], [1.0] * len(own))
        evidence[:, number] = -np.log1p(-rank_within(fused, everything))
        best = ranks[:, own].argmax(axis=1)
        where[:, number] = tiles[:, own][np.arange(len(best)), best]
    return evidence, where


def _found(pool: Embeddings, words: Sequence[Word]) -> NDArray[np.bool_]:
    """Bool ``[n, words]``: frames with a confident box of a class that means the word."""
    found = np.zeros((len(pool.frames), len(words)), bool)
    for number, name in enumerate(pool.class_names):
        try:
            meant = set(_find_word(name, {}).classes)
        except ParameterError:
            continue
        boxes = (pool.classes == number) & (pool.scores >= CONFIDENCE_THRESHOLD)
        same = np.array([bool(meant & set(word.classes)) for word in words], bool)
        found[np.ix_(np.unique(pool.owner[boxes]), same)] = True
    return found


def _find_word(text: str, more: Mapping[str, Word]) -> Word:
    known = {**_class_words(), **_road_words(), **more}
    name = _normalise(text)
    for form in (name, name.removesuffix("s"), name.removesuffix("es")):
        if form in known:
            return Word(" ".join(text.split()), known[form].classes)
    raise ParameterError(
        "unknown word" if name else "empty search text",
        where=text,
        hint=f"Near words: {', '.join(_near(name, list(known)))}. Search with other words through "
        "CLIP or SigLIP (--encoder), or by example (--like)",
    )


def _near(name: str, known: list[str]) -> list[str]:
    """Known words that share a word with ``name``, then those spelled alike."""
    own = set(name.split())
    shared = sorted((one for one in known if own & set(one.split())), key=len)
    alike = difflib.get_close_matches(name, known, n=_NEAR_WORDS, cutoff=0.6)
    near = list(dict.fromkeys([*shared, *alike]))[:_NEAR_WORDS]
    return near or ["motorcycle", "bicycle", "train", "ambulance", "animal"]


def _normalise(text: str) -> str:
    words = text.casefold().replace("-", " ").replace("_", " ").split()
    return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words)


def _parse_words(text: str, where: object, known: Mapping[str, Word]) -> tuple[Word, ...]:
    words: dict[str, Word] = {}
    for line in text.splitlines():
        content = line.partition("#")[0].strip().removeprefix("- ").strip()
        if not content:
            continue
        weight = _WEIGHT.search(content)
        name, colon, classes = content[: weight.start() if weight else None].partition(":")
        try:
            if colon:
                parts = [_find_word(one, known) for one in classes.strip(" []").split(",")]
                members = tuple(dict.fromkeys(n for one in parts for n in one.classes))
                word = Word(" ".join(name.split()), members)
            else:
                word = replace(_find_word(name, {**known, **words}), weight=1.0)
        except ParameterError as error:
            raise ParameterError(
                f"{error.what} {error.where!r}", where=where, hint=error.hint
            ) from error
        words[_normalise(name)] = replace(word, weight=float(weight[1])) if weight else word
    return tuple(words.values())


@cache
def _class_words() -> Mapping[str, Word]:
    """Each name of each class; a name that two classes share stands for both."""
    words: dict[str, Word] = {}
    lines = [line for line in _shipped(_CLASSES_FILE).splitlines() if not line.startswith("#")]
    for number, line in enumerate(lines):
        for name in line.split(", "):
            same = words.get(_normalise(name), Word(name, ()))
            words[_normalise(name)] = Word(name, (*same.classes, number))
    return words


@cache
def _road_words() -> Mapping[str, Word]:
    words: dict[str, Word] = {}
    for line in _shipped(_ROADS_FILE).splitlines():
        name, colon, classes = line.partition("#")[0].partition(":")
        if colon:
            members = (_class_words()[_normalise(one)].classes for one in classes.split(","))
            numbers = tuple(dict.fromkeys(n for one in members for n in one))
            words[_normalise(name)] = Word(name.strip(), numbers)
    return words


def _shipped(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
