"""Backtests of planted pools, where the truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.curation.conftest import make_checkpoint, make_dataset
from tests.curation.signals.synthetic import embeddings
from workbench.core.workspace import Workspace
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.selection import backtest as module
from workbench.curation.selection.backtest import (
    HiddenKind,
    Signals,
    backtest,
    describe_backtest,
    hidden_kinds,
    sample_drives,
    usable,
)
from workbench.curation.selection.mining import mine
from workbench.curation.selection.ranking import MiningQuery
from workbench.curation.signals.similarity import Exemplar
from workbench.records import dataset as datasets
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Label, Light, Origin, Role
from workbench.records.store import Store
from workbench.records.types import Backtest, Selection

TESTED = Signals(("entropy", "doubt"), {"doubt": 1.0})
PREVALENCE = 0.05


def _pool(
    count: int, rng: np.random.Generator, effect: float, per_drive: int = 1
) -> tuple[Embeddings, list[HiddenKind], list[str]]:
    """Frames of three rare kinds; entropy is raised by ``effect`` where one is, doubt is noise."""
    positive = [rng.random(count) < PREVALENCE for _ in range(3)]
    found = np.any(positive, axis=0)
    objects = [(row, [0.0, 1.0], float(rng.uniform(0.15, 0.69))) for row in range(count)]
    boxes = np.tile(np.array([20, 20, 50, 50], np.float32), (count, 1))
    pool = embeddings(
        rng.normal(size=(count, 2)),
        entropy=rng.normal(size=count) + effect * found,
        objects=objects,
        boxes=boxes,
    )
    conditions = ("all",) * count
    kinds = [HiddenKind(f"class=k{n}", one, conditions) for n, one in enumerate(positive)]
    kinds.append(HiddenKind(Backtest.ANY, found, conditions, tuple(kind.name for kind in kinds)))
    return pool, kinds, [f"drive-{row // per_drive}" for row in range(count)]


def _tested(effect: float, seed: int, count: int = 300, **options: object) -> Backtest:
    pool, kinds, drives = _pool(count, np.random.default_rng(seed), effect)
    result = backtest(pool, kinds, drives, TESTED, share=0.05, **options)  # type: ignore[arg-type]
    assert result is not None
    return result


def _weight(result: Backtest, signal: str) -> float:
    return next(one.weight for one in result.signals if one.signal == signal)


def test_a_signal_that_works_gets_all_the_weight() -> None:
    result = _tested(1.5, 0)
    assert result.led_by == "weighed"
    assert (_weight(result, "entropy"), _weight(result, "doubt")) == (1.0, 0.0)
    assert "beat chance on the labelled drives: entropy" in result.reason
    whole = next(one for one in result.expected if one.kind == Backtest.ANY)
    assert whole.lift_low > 1
    assert result.any_of == ("class=k0", "class=k1", "class=k2")
    lines = describe_backtest(result)
    assert "300 labelled frames of 300 drives" in lines[0]
    assert any("any rare class" in line and "x chance" in line for line in lines)


@pytest.mark.parametrize("effect", [0.0, -1.5])
def test_a_signal_at_or_below_chance_gets_none(effect: float) -> None:
    """Noise passes in fewer than one of twenty pools, an inverted signal in none."""
    led = [_tested(effect, seed) for seed in range(20)]
    weighed = [one for one in led if one.led_by == "weighed"]
    assert len(weighed) <= 2
    assert all(_weight(one, "entropy") == 0 for one in weighed) or effect == 0
    if effect < 0:
        assert all(one.led_by == "random" for one in led if one not in weighed)
        assert all(_weight(one, "entropy") == 0 for one in led)
    assert all("no signal beats chance" in one.reason for one in led if one not in weighed)


def test_the_promised_interval_covers_the_truth() -> None:
    """The truth is the yield of the same ranking in a pool a thousand times as large."""
    rng = np.random.default_rng(99)
    positive = [rng.random(300_000) < PREVALENCE for _ in range(3)]
    found = np.any(positive, axis=0)
    value = rng.normal(size=len(found)) + 1.0 * found
    covered, kept = [], 0
    for seed in range(40):
        result = _tested(1.0, seed)
        kept += result.led_by == "weighed"
        top = value >= np.quantile(value, 1 - result.share)
        truth = {f"class=k{n}": float(one[top].mean()) for n, one in enumerate(positive)}
        truth[Backtest.ANY] = float(found[top].mean())
        covered += [one.low <= truth[one.kind] <= one.high for one in result.expected]
    assert kept >= 38
    # 160 intervals of 95 %; those of one pool depend on each other.
    assert np.mean(covered) >= 0.9, np.mean(covered)


def test_the_yield_of_the_luckiest_of_many_signals_is_not_promised() -> None:
    """Of twenty signals that are noise one looks good; its promise stays at chance."""
    count, lifts = 300, []
    for seed in range(10):
        pool, kinds, drives = _pool(count, np.random.default_rng(seed), 0.0)
        noise = np.random.default_rng(1000 + seed)
        test = module._Test(pool, drives, TESTED, [True] * count, ())
        test.signals = Signals(tuple(f"s{n}" for n in range(20)), {})
        test.share = 0.1
        ranked = []
        for kind in kinds[:3]:
            ranks = np.stack([(noise.permutation(count) + 0.5) / count for _ in range(20)], axis=1)
            evidence = -np.log1p(-ranks)
            sums = np.stack([test._by_drive(one * kind.positive) for one in evidence.T], axis=1)
            ranked.append(
                module._RankedKind(
                    kind, ["all"] * count, ranks, sums, test._by_drive(kind.positive)
                )
            )
        lifts += [test.expected(one, ranked, None, "weighed").lift for one in ranked]
    assert 0.6 < np.mean(lifts) < 1.4


def test_too_few_drives_or_finds_are_not_tested() -> None:
    pool, kinds, _ = _pool(300, np.random.default_rng(0), 1.5)
    few = [f"drive-{row // 30}" for row in range(300)]
    assert backtest(pool, kinds, few, TESTED, share=0.05) is None
    nothing = [HiddenKind("class=k0", np.zeros(300, bool), ("all",) * 300)]
    drives = [f"drive-{row}" for row in range(300)]
    assert backtest(pool, nothing, drives, TESTED, share=0.05) is None
    common = HiddenKind("class=car", np.arange(300) % 2 == 0, ("all",) * 300)
    one_drive = HiddenKind("class=bus", np.arange(300) < 10, ("all",) * 300)
    assert usable([common, one_drive], few) == []


def test_with_little_evidence_the_default_weights_stay() -> None:
    rng = np.random.default_rng(5)
    pool, _, drives = _pool(60, rng, 0.0)
    positive = np.arange(60) % 12 == 0
    kinds = [HiddenKind("class=k0", positive, ("all",) * 60)]
    result = backtest(pool, kinds, drives, TESTED, share=0.05)
    assert result is not None
    assert result.led_by == "default"
    assert (_weight(result, "entropy"), _weight(result, "doubt")) == (0.0, 1.0)
    assert "too few" in result.reason


def test_given_signals_are_tested_and_kept() -> None:
    pool, kinds, drives = _pool(300, np.random.default_rng(0), -1.5)
    result = backtest(
        pool, kinds, drives, Signals(("entropy",), {"entropy": 1.0}, given=True), share=0.05
    )
    assert result is not None
    assert (result.led_by, _weight(result, "entropy")) == ("given", 1.0)
    whole = next(one for one in result.expected if one.kind == Backtest.ANY)
    assert (whole.rate, whole.low) == (0.0, 0.0)
    assert 0 < whole.high < 0.2


def test_equal_inputs_give_equal_records_in_any_order_of_frames() -> None:
    pool, kinds, drives = _pool(300, np.random.default_rng(3), 1.0)
    order = np.random.default_rng(4).permutation(300)
    turned = [
        HiddenKind(kind.name, kind.positive[order], kind.conditions, kind.any_of) for kind in kinds
    ]
    first = backtest(pool, kinds, drives, TESTED, share=0.05)
    second = backtest(pool.take(order), turned, [drives[row] for row in order], TESTED, share=0.05)
    assert first == second


def test_kinds_hide_their_own_word(workspace: Workspace) -> None:
    dataset = make_dataset(workspace)
    frames = dataset.frames
    kinds = {
        kind.name: kind
        for kind in hidden_kinds(frames, dataset.labels, ("car", "cyclist"), ("car", "cyclist"))
    }
    assert {"class=car", "light=night", "weather=clear", Backtest.ANY} <= kinds.keys()
    night = np.array([frame.conditions.light is Light.NIGHT for frame in frames])
    assert np.array_equal(kinds["light=night"].positive, night)
    assert set(kinds["light=night"].conditions) == {"clear"}
    assert set(kinds["class=car"].conditions) == {"day, clear", "night, clear"}
    assert kinds[Backtest.ANY].any_of == ("class=car", "class=cyclist")


def test_boxes_of_a_model_and_ignored_ones_are_no_truth(workspace: Workspace) -> None:
    frames = make_dataset(workspace).frames[:3]
    box = Box(x=1, y=1, w=5, h=5)
    labels = [
        Label(frame=frames[0].id, cls="car", box=box, origin=Origin.MODEL),
        Label(frame=frames[1].id, cls="car", box=box, origin=Origin.HUMAN, ignore=True),
        Label(frame=frames[2].id, cls="car", box=box, origin=Origin.HUMAN),
    ]
    assert hidden_kinds(frames, labels, ("car",), ())[0].positive.tolist() == [False, False, True]


def test_whole_drives_are_sampled(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = make_dataset(workspace).frames
    monkeypatch.setattr(module, "_MAX_FRAMES", 20)
    chosen = sample_drives(frames)
    assert len(chosen) == 16
    assert len({frame.drive for frame in chosen}) == 2
    assert sample_drives(frames[::-1])[0].drive == chosen[0].drive


def _many_drives(workspace: Workspace, tmp_path: Path) -> tuple[Store, Dataset, str]:
    """Sixty drives of four frames, half of them labelled; every fifth drive has cyclists."""
    store = Store(workspace)
    made = make_dataset(workspace, drives=60, per_drive=4)
    frames = tuple(
        frame.model_copy(update={"role": Role.SEED if number % 8 < 4 else Role.POOL})
        for number, frame in enumerate(made.frames)
    )
    seldom = {frame.id for frame in frames if int(frame.drive.rpartition("-")[2]) % 5 == 0}
    labels = tuple(
        Label(
            frame=frame.id,
            cls="cyclist" if frame.id in seldom else "car",
            box=Box(x=10, y=10, w=30, h=30),
            origin=Origin.IMPORTED,
        )
        for frame in frames
        if frame.role is Role.SEED
    )
    ref = datasets.save_dataset(store, replace(made, frames=frames, labels=labels), made_by="test")
    return store, datasets.load_dataset(store, ref), make_checkpoint(store, ref, tmp_path / "w")


def test_mine_keeps_its_backtest(workspace: Workspace, tmp_path: Path) -> None:
    """The untrained detector knows nothing, and the selection says what that promises."""
    store, dataset, model = _many_drives(workspace, tmp_path)
    selection = store.get(mine(store, dataset.ref or "", model, 8), Selection)
    tested = selection.backtest
    assert tested is not None
    assert (tested.frames, tested.drives) == (120, 30)
    assert {one.kind for one in tested.expected} >= {"class=cyclist"}
    assert {one.signal for one in tested.signals} >= {"novelty", "doubt", "entropy", "frame"}
    if tested.led_by in ("entropy", "random"):
        assert tested.reason in selection.notes
    again = store.get(mine(store, dataset.ref or "", model, 8), Selection)
    assert again == selection, "the same input gives the same record"
    exemplar = Exemplar(dataset.frames[0].id)
    query = MiningQuery(like=(exemplar,))
    searched = mine(store, dataset.ref or "", model, 8, query=query)
    assert store.get(searched, Selection).backtest is None
