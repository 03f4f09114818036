"""Sweep reports and live curves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core.errors import DataError
from workbench.core.workspace import Workspace
from workbench.records.base import Ref, make_ref
from workbench.records.model_types import SweepReport
from workbench.records.store import Store
from workbench.training import Augmentation, save_checkpoint, sweeps, train
from workbench.training.plots import LivePlot, _curves_svg

DATASET = make_ref("dataset", "1" * 64)


@pytest.fixture
def refs(workspace: Workspace, store: Store) -> list[Ref]:
    """Two rates with two seeds each, and one seed with other augmentation."""
    dataset = scenes(workspace, 4)
    made = [TINY.replace(steps=1, lr=lr, seed=seed) for lr in (1e-3, 2e-3) for seed in (0, 1)]
    made.append(made[0].replace(augment=Augmentation.driving()))
    return [
        save_checkpoint(store, train(dataset, config, classes=CLASSES, preprocessing=SPEC), DATASET)
        for config in made
    ]


def report(store: Store, refs: list[Ref], values: list[float]) -> SweepReport:
    metrics = {ref: (value, None, None) for ref, value in zip(refs, values, strict=False)}
    return sweeps.sweep_report(
        store, DATASET, metrics, metric_name="ap50", frames=4, simulated=True
    )


def test_settings_are_judged_by_their_seeds(store: Store, refs: list[Ref]) -> None:
    made = report(store, refs[:4], [0.10, 0.20, 0.60, 0.62])
    assert [one.settings for one in made.settings] == [{"lr": 2e-3}, {"lr": 1e-3}]
    best, _ = made.settings
    assert (best.seeds, best.mean) == ((0, 1), pytest.approx(0.61))
    assert best.low is not None
    # Student's t with one degree of freedom: 12.706 standard errors.
    assert best.mean - best.low == pytest.approx(12.706 * 0.01, rel=1e-3)
    assert made.best == refs[3]
    assert made.decided is False, "0.15 +- 0.64 reaches over 0.61"
    assert "not decided" in made.summary
    clear = report(store, refs[:4], [0.10, 0.101, 0.60, 0.601])
    assert clear.decided is True
    assert "better than the next" in sweeps.format_report(clear)
    assert store.get(store.put(clear, {}), SweepReport) == clear


def test_one_seed_decides_nothing(store: Store, refs: list[Ref]) -> None:
    made = report(store, [refs[0], refs[2], refs[4]], [0.1, 0.9, 0.5])
    assert made.decided is None
    assert "INSUFFICIENT EVIDENCE" in made.summary
    assert all(one.low is None for one in made.settings)
    names = {name for one in made.settings for name in one.settings}
    assert {"lr", "augment.mosaic", "augment.fog"} <= names
    assert "no interval from one seed" in sweeps.format_report(made)
    with pytest.raises(DataError, match="no models"):
        report(store, [], [])


def test_trainings_of_a_week_are_counted(store: Store, refs: list[Ref]) -> None:
    now = datetime.now(UTC)
    assert sweeps.weekly_trainings(store, now) == (5, 0)
    assert sweeps.weekly_trainings(store, now + timedelta(days=8)) == (0, 5)
    assert sweeps.weekly_trainings(store, now + timedelta(days=20)) == (0, 0)


def test_live_curves_are_passed_on_and_drawn_only_in_a_notebook() -> None:
    calls: list[object] = []
    quiet = LivePlot(
        lambda *args: calls.append(args), lambda *args: calls.append(args), shown=False
    )
    quiet.log("train/loss", 1.0, 0)
    quiet.progress(1, 2)
    assert calls == [("train/loss", 1.0, 0), (1, 2)]
    assert quiet.curves == {}

    shown = LivePlot(lambda *args: None, lambda *args: None, shown=True)
    for step in range(30):
        shown.log("train/loss", 3.0 / (step + 1), step)
        shown.log("train/lr", 0.1, step)
        shown.log("watched/light=<night>", 0.01 * step, step)
        shown.progress(step + 1, 30)
    shown.log("watched/light=<night>", 0.777, 30)  # the last validation follows the last step
    assert "0.777" in shown._plot.value
    assert shown._bar.value == 30
    picture = shown._plot.value
    assert picture.count("<polyline") == 2
    assert "&lt;night&gt;" in picture
    assert "loss 0.1" in picture
    assert "lr" not in shown.curves
    assert "<svg" in _curves_svg({})
    one = _curves_svg({"watched/ap50": [(30, 0.2)]})
    assert "<circle cx='606.0' cy=" in one
    assert "<circle" not in _curves_svg({"watched/ap50": [(30, 0.2), (60, 0.3)]})
    assert (
        "nan" not in _curves_svg({"train/loss": [(0, float("nan")), (1, 2.0)]}).split("<text x=")[0]
    )
