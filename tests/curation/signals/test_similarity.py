"""Search by example and by text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.curation.signals.synthetic import embeddings
from workbench.core.errors import DataError, ParameterError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals import similarity
from workbench.curation.signals.similarity import Exemplar, Regions

LEFT, RIGHT = (10.0, 10.0, 60.0, 60.0), (120.0, 20.0, 50.0, 50.0)
COUNT, WIDTH = 60, 8


def _pool() -> Embeddings:
    """Noise, and a deer: seen as an object on frame 5 and 30, only under a tile on frame 9."""
    rng = np.random.default_rng(0)
    deer = 4.0 * np.eye(WIDTH)[3]
    objects = [(frame, (rng.normal(size=WIDTH) * 0.5).tolist(), 0.8) for frame in range(COUNT)]
    boxes = np.tile(np.array([120, 20, 170, 70], np.float32), (COUNT, 1))
    for frame in (5, 30):
        objects[frame] = (frame, (deer + rng.normal(size=WIDTH) * 0.1).tolist(), 0.8)
    tiles = rng.normal(size=(COUNT, 2, WIDTH)) * 0.5
    tiles[9, 0] = deer + rng.normal(size=WIDTH) * 0.1
    frames = rng.normal(size=(COUNT, WIDTH))
    frames[44] = frames[5] * 1.7
    return embeddings(frames, objects=objects, boxes=boxes, tiles=tiles)


def test_a_box_finds_objects_and_tiles() -> None:
    pool = _pool()
    result = similarity.search_by_example(pool, [Exemplar(pool.frames[5], RIGHT)])
    assert set(result.order[:2].tolist()) == {30, 9}
    assert 5 not in result.order and len(result.order) == COUNT - 1
    assert (result.kind[30], result.row[30]) == ("object", 30)
    assert (result.kind[9], result.row[9]) == ("tile", 18)
    assert "an object similar to exemplar" in result.reason(
        30
    ) and "part of the image" in result.reason(9)


def test_a_box_without_an_object_uses_its_tile() -> None:
    pool = _pool()
    result = similarity.search_by_example(pool, [Exemplar(pool.frames[9], LEFT)])
    assert set(result.order[:2].tolist()) == {5, 30}


def test_a_given_vector_needs_no_frame_of_the_pool() -> None:
    pool = _pool()
    deer = 4.0 * np.eye(WIDTH)[3]
    result = similarity.search_by_example(pool, [Exemplar("f" * 64, RIGHT, deer)])
    assert set(result.order[:3].tolist()) == {5, 30, 9}


def test_a_frame_finds_its_scene() -> None:
    pool = _pool()
    result = similarity.search_by_example(pool, [Exemplar(pool.frames[5])])
    assert result.order[0] == 44 and result.kind[44] == "frame"


def test_several_exemplars_and_negatives() -> None:
    pool = _pool()
    both = [Exemplar(pool.frames[5], RIGHT), Exemplar(pool.frames[20], RIGHT)]
    result = similarity.search_by_example(pool, both)
    assert result.exemplar[30] == 0 and result.exemplar[20] == 1
    assert "exemplar 1" in result.reason(30)
    without = similarity.search_by_example(
        pool, [both[0]], negatives=[Exemplar(pool.frames[30], RIGHT)]
    )
    assert without.score[30] < 0.7 < similarity.search_by_example(pool, [both[0]]).score[30]


def test_results_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _pool()
    whole = similarity.search_by_example(pool, [Exemplar(pool.frames[5], RIGHT)])
    monkeypatch.setattr("workbench.curation.signals.similarity._BLOCK", 7)
    parts = similarity.search_by_example(pool, [Exemplar(pool.frames[5], RIGHT)])
    np.testing.assert_allclose(parts.score, whole.score, atol=1e-5)
    assert parts.order.tolist() == whole.order.tolist() and parts.kind == whole.kind


def test_invalid_searches_are_reported() -> None:
    pool = _pool()
    frame = pool.frames[5]
    with pytest.raises(ParameterError, match="no exemplar"):
        similarity.search_by_example(pool, [])
    with pytest.raises(ParameterError, match="not in the pool") as raised:
        similarity.search_by_example(pool, [Exemplar("a" * 64, LEFT)])
    assert raised.value.where == "a" * 64
    with pytest.raises(ParameterError, match="no object or tile lies under"):
        similarity.search_by_example(pool, [Exemplar(frame, (500.0, 500.0, 10.0, 10.0))])
    with pytest.raises(ParameterError, match="invalid exemplar box"):
        similarity.search_by_example(pool, [Exemplar(frame, (0.0, 0.0, -3.0, 10.0))])
    with pytest.raises(ParameterError, match="at once"):
        similarity.search_by_example(pool, [Exemplar(frame), Exemplar(frame, LEFT)])
    with pytest.raises(DataError, match="NaN or infinity"):
        similarity.search_by_example(pool, [Exemplar(frame, LEFT, np.full(WIDTH, np.nan))])
    with pytest.raises(DataError, match="width 8"):
        similarity.search_by_example(pool, [Exemplar(frame, LEFT, np.ones(5))])
    bare = embeddings(np.ones((4, 3)))
    with pytest.raises(DataError, match="neither objects nor tiles"):
        Regions(bare, whole=False)


def test_identical_frames_are_equally_similar() -> None:
    pool = embeddings(np.ones((30, 4)), tiles=np.ones((30, 2, 4)))
    result = similarity.search_by_example(pool, [Exemplar(pool.frames[3], LEFT)])
    assert np.unique(result.score).tolist() == [0.0]
    assert result.order.tolist() == [row for row in range(30) if row != 3]


class _TextEncoder:
    """Texts for the directions of a small space."""

    model = "0" * 64

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        directions: np.ndarray = np.eye(WIDTH, dtype=np.float32)[
            [{"a deer": 3}[one] for one in texts]
        ]
        return directions


def test_a_text_finds_frames_objects_and_tiles() -> None:
    pool = _pool()
    result = similarity.search_by_text(pool, _TextEncoder(), "a deer")
    assert set(result.order[:3].tolist()) == {5, 30, 9}
    assert result.kind[9] == "tile"


def test_a_text_search_needs_a_text_encoder() -> None:
    pool = _pool()
    with pytest.raises(ParameterError, match="no text tower"):
        similarity.search_by_text(pool, object(), "a deer")
    with pytest.raises(ParameterError, match="empty search text"):
        similarity.search_by_text(pool, _TextEncoder(), "  ")
    other = embeddings(np.ones((4, WIDTH)), model="1" * 64)
    with pytest.raises(ParameterError, match="another model"):
        similarity.search_by_text(other, _TextEncoder(), "a deer")
