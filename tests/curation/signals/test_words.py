"""Words: which classes they stand for, how frames rank by them, and watch lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.curation.signals.synthetic import GRID, Object, embeddings
from workbench.core.errors import DataError, ParameterError
from workbench.curation.embedding.embeddings import Embeddings, Words
from workbench.curation.signals.words import find_words, read_watch_list, watch, word_evidence

MOPED, SCOOTER, PLOW, TRAM = 665, 670, 803, 829


def pool_of(
    scores: dict[int, Sequence[float]],
    tiles: dict[int, Sequence[int]] | None = None,
    **more: object,
) -> Embeddings:
    """Frames with these log probabilities by class; -9 for every other class."""
    count = len(next(iter(scores.values())))
    table = np.full((count, 1000), -9.0, np.float16)
    where = np.zeros((count, 1000), np.uint16)
    for number, values in scores.items():
        table[:, number] = values
    for number, best in (tiles or {}).items():
        where[:, number] = best
    arrays = {"word_scores": table, "word_tiles": where}
    words = Words("imagenet-1k", GRID, lambda name, classes: arrays[name][:, list(classes)])
    return replace(embeddings(np.zeros((count, 2)), **more), words=words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("motor scooter", {SCOOTER}),
        ("Motor-Scooters", {SCOOTER}),
        ("tram", {829}),  # a synonym, and a word of the road table
        ("fire truck", {555}),
        ("snowplow, moped", {PLOW, MOPED}),
        ("motorcycle", {MOPED, SCOOTER}),
    ],
)
def test_words_are_names_synonyms_and_words_for_roads(text: str, classes: set[int]) -> None:
    found = {number for word in find_words(text) for number in word.classes}
    assert classes <= found
    assert len(found) <= len(classes) + 2


def test_every_word_of_the_shipped_files_is_known() -> None:
    from workbench.curation.signals import words

    assert len(words._class_words()) > 1500
    numbers = {number for word in words._class_words().values() for number in word.classes}
    assert numbers == set(range(1000))
    assert all(word.classes for word in words._road_words().values())
    assert 15 <= len(read_watch_list()) <= 40


def test_an_unknown_word_names_near_ones() -> None:
    with pytest.raises(ParameterError, match="unknown word") as caught:
        find_words("kick scooter")
    assert "motor scooter" in str(caught.value.hint)
    with pytest.raises(ParameterError) as caught:
        find_words("ambulanse")
    assert "ambulance" in str(caught.value.hint)
    with pytest.raises(ParameterError, match="empty search text"):
        find_words(" , ")


def test_frames_rank_by_a_words_own_scores_not_by_their_size() -> None:
    """Scores of two classes cannot be compared: each is ranked over the pool first."""
    pool = pool_of({MOPED: [-1.0, -1.1, -1.2, -1.3], PLOW: [-8.9, -8.8, -8.7, -3.0]})
    evidence = word_evidence(pool, find_words("moped, snowplow"))
    assert evidence.word.tolist() == [0, 0, 1, 1]
    assert evidence.value.argmax() in (0, 3)
    assert evidence.value[1] < evidence.value[0]


def test_the_tile_is_that_of_the_class_that_shows_most() -> None:
    pool = pool_of(
        {MOPED: [-1.0, -5.0, -5.0], SCOOTER: [-6.0, -6.0, -1.0]},
        tiles={MOPED: [1, 0, 0], SCOOTER: [0, 0, 1]},
    )
    assert word_evidence(pool, find_words("motorcycle")).tile.tolist() == [1, 0, 1]


def test_one_sure_word_counts_more_than_several_likely_ones() -> None:
    names = find_words("moped, snowplow, tram")
    rows = np.array([[-1.0, -9.0, -9.0], *[[-2.0 - n / 50] * 3 for n in range(20)]])
    rows[1:3] = [[-1.9, -1.8, -1.8], [-1.8, -1.9, -1.9]]
    scores = {word.classes[0]: rows[:, at].tolist() for at, word in enumerate(names)}
    value = watch(pool_of(scores), names).value
    assert (
        value[0] < value[1]
    )  # first by one word, behind by two: the second is near the top in all
    heavy = watch(pool_of(scores), [replace(names[0], weight=4.0), *names[1:]]).value
    assert heavy[0] == heavy.max()


def test_what_the_detector_has_a_box_for_counts_half() -> None:
    scores = {TRAM: [-1.0, -1.0, *[-8.0 - n / 10 for n in range(8)]]}
    found: list[Object] = [(0, [1.0, 0.0], 0.9), (1, [1.0, 0.0], 0.1)]
    pool = pool_of(scores, objects=found, classes=[0, 0])
    assert watch(pool, find_words("tram")).value[0] > 0.8  # a car is no tram
    pool = replace(pool, class_names=("train", "deer"))
    value = watch(pool, find_words("tram")).value
    assert value[0] == pytest.approx(value[1] / 2, rel=0.2)  # the second box is not confident


def test_a_watch_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "watch.yaml"
    path.write_text(
        "# ours\n- e-scooter: [motor scooter, moped]\n- snowplow x2  # in winter\n\ntram\n"
    )
    words = read_watch_list(path)
    assert [word.text for word in words] == ["e-scooter", "snowplow", "tram"]
    assert set(words[0].classes) == {SCOOTER, MOPED}
    assert [word.weight for word in words] == [1.0, 2.0, 1.0]
    path.write_text("snowplov\n")
    with pytest.raises(ParameterError, match="snowplov") as caught:
        read_watch_list(path)
    assert str(path) in str(caught.value)
    assert "snowplow" in str(caught.value.hint)
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="no words"):
        read_watch_list(path)


def test_without_words_there_is_no_watching() -> None:
    with pytest.raises(ParameterError, match="knows no words"):
        watch(embeddings(np.zeros((3, 2))), find_words("tram"))
