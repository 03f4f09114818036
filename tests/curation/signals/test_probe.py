"""Search with several exemplars, and with a person's answers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.curation.signals.synthetic import embeddings
from workbench.core.errors import ParameterError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals import similarity
from workbench.curation.signals.probe import SteeredSearch
from workbench.curation.signals.similarity import Exemplar

LEFT = (0.0, 0.0, 100.0, 100.0)
COUNT, WIDTH = 300, 16


def _pool(decoys: int = 0) -> tuple[Embeddings, np.ndarray]:
    """Noise under two tiles; every tenth frame has a deer, some others a decoy that is close.

    A deer varies from frame to frame as much as all else does, so one exemplar says little.
    """
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(COUNT, 2, WIDTH))
    deer = np.arange(COUNT) % 10 == 0
    tiles[deer, 0] += 3 * np.eye(WIDTH)[:3].sum(0) + rng.normal(size=(deer.sum(), WIDTH))
    decoy = np.flatnonzero(np.arange(COUNT) % 10 == 5)[:decoys]
    tiles[decoy, 0] += 2.6 * np.eye(WIDTH)[:3].sum(0) + 3 * np.eye(WIDTH)[8]
    return embeddings(rng.normal(size=(COUNT, WIDTH)), tiles=tiles), deer


def _found(search: SteeredSearch, deer: np.ndarray, count: int = 15) -> int:
    return int(deer[search.scores.order[:count]].sum())


def _boxes(pool: Embeddings, numbers: range) -> list[Exemplar]:
    return [Exemplar(pool.frames[number], LEFT) for number in numbers]


def test_one_exemplar_is_compared_as_before() -> None:
    pool, _ = _pool()
    one = Exemplar(pool.frames[0], LEFT)
    assert np.array_equal(
        SteeredSearch(pool, [one]).scores.score, similarity.search_by_example(pool, [one]).score
    )


def test_five_exemplars_find_more_than_one() -> None:
    pool, deer = _pool()
    five = SteeredSearch(pool, _boxes(pool, range(0, 50, 10)))
    ones = [_found(SteeredSearch(pool, [one]), deer) for one in five.like]
    assert _found(five, deer) > 1.5 * np.mean(ones)
    assert not set(five.scores.order.tolist()) & {0, 10, 20, 30, 40}
    best = int(five.scores.order[0])
    assert (five.scores.kind[best], five.scores.row[best]) == ("tile", 2 * best)
    assert "similar to the exemplars" in five.scores.reason(best)


def test_a_tiny_box_says_little() -> None:
    """Most of the region around it is something else."""
    pool, deer = _pool()
    good = _boxes(pool, range(0, 30, 10))
    tiny = [Exemplar(pool.frames[n], (50.0, 50.0, 8.0, 8.0)) for n in (1, 2, 3, 4)]
    wide = [Exemplar(one.frame, LEFT) for one in tiny]
    plain = _found(SteeredSearch(pool, good), deer)
    assert _found(SteeredSearch(pool, good + tiny), deer) >= plain - 1
    assert _found(SteeredSearch(pool, good + wide), deer) < plain - 2


def test_equal_inputs_give_equal_scores() -> None:
    pool, _ = _pool()
    a, b = (SteeredSearch(pool, _boxes(pool, range(0, 50, 10))) for _ in range(2))
    assert np.array_equal(a.scores.score, b.scores.score)


def test_blocks_of_any_size_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = _pool()
    whole = SteeredSearch(pool, _boxes(pool, range(0, 50, 10))).scores
    monkeypatch.setattr("workbench.curation.signals.similarity._BLOCK", 7)
    parts = SteeredSearch(pool, _boxes(pool, range(0, 50, 10))).scores
    assert np.allclose(whole.score, parts.score, atol=1e-5)
    assert np.array_equal(whole.row, parts.row)


def test_answers_turn_the_search_away_from_decoys() -> None:
    pool, deer = _pool(decoys=25)
    search = SteeredSearch(pool, _boxes(pool, range(0, 20, 10)))
    shown, unseen = np.split(search.scores.order, [15])
    before = int(deer[unseen[:10]].sum())
    search.refit(
        yes=[pool.frames[row] for row in shown if deer[row]],
        no=[pool.frames[row] for row in shown if not deer[row]],
    )
    assert set(search.accepted) | set(search.rejected) == {pool.frames[row] for row in shown}
    assert not set(search.scores.order.tolist()) & set(shown.tolist()), "answered frames stay out"
    assert _found(search, deer, 10) > before + 1, (before, _found(search, deer, 10))


def test_a_rejected_frame_loses_rank_and_so_does_its_like() -> None:
    pool, _ = _pool(decoys=25)
    like = _boxes(pool, range(0, 30, 10))
    decoys = np.arange(5, 250, 10)
    plain = SteeredSearch(pool, like).scores.score[decoys[1:]].mean()
    frame = SteeredSearch(pool, like, [Exemplar(pool.frames[5])]).scores.score[decoys[1:]].mean()
    box = SteeredSearch(pool, like, [Exemplar(pool.frames[5], LEFT)]).scores.score[decoys[1:]]
    assert frame < plain
    assert box.mean() < plain


def test_whole_frames_are_probed_as_scenes() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(COUNT, WIDTH))
    tunnel = np.arange(COUNT) % 10 == 0
    vectors[tunnel] += 2 * np.eye(WIDTH)[:2].sum(0)
    pool = embeddings(vectors)
    search = SteeredSearch(pool, [Exemplar(pool.frames[n]) for n in range(0, 50, 10)])
    assert _found(search, tunnel) >= 12
    assert search.scores.kind[0] == "frame"


@pytest.mark.parametrize(
    ("yes", "no", "what"),
    [
        (["f" * 64], [], "unknown frame id"),
        ([f"{3:064x}"], [f"{3:064x}"], "both answers"),
    ],
)
def test_impossible_answers_are_errors(yes: list[str], no: list[str], what: str) -> None:
    search = SteeredSearch(_pool()[0], _boxes(_pool()[0], range(0, 20, 10)))
    with pytest.raises(ParameterError, match=what):
        search.refit(yes, no)
    assert not search.rounds, "a refused answer is not kept"


def test_impossible_exemplars_are_errors() -> None:
    pool, _ = _pool()
    good = Exemplar(pool.frames[0], LEFT)
    with pytest.raises(ParameterError, match="frames and boxes at once"):
        SteeredSearch(pool, [good, Exemplar(pool.frames[1])])
    with pytest.raises(ParameterError, match="no object or tile"):
        SteeredSearch(pool, [good, Exemplar(pool.frames[1], (500.0, 500.0, 10.0, 10.0))])
    with pytest.raises(ParameterError, match="invalid exemplar box"):
        SteeredSearch(pool, [good, Exemplar(pool.frames[1], (5.0, 5.0, -10.0, 10.0))])
    with pytest.raises(ParameterError, match="not in the pool"):
        SteeredSearch(pool, [good], [Exemplar("a" * 64)])
