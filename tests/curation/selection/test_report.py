"""Mining reports: correct on synthetic arms, inconclusive without evidence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.curation.conftest import SCHEMA
from workbench import curation
from workbench.core.errors import ParameterError
from workbench.curation import LabelingPace, LabelledSelection, plots
from workbench.curation.selection import report
from workbench.curation.selection.report import ArmYield, describe_comparison, describe_promise
from workbench.data import resampling
from workbench.records import dataset as datasets
from workbench.records.base import Ref, Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Conditions, Drive, Frame, Label, Light, Origin, Role
from workbench.records.store import Store
from workbench.records.types import (
    Arm,
    Backtest,
    ExpectedYield,
    MiningReport,
    SelectedFrame,
    Selection,
)

BOX = Box(x=1, y=1, w=9, h=9)
REPLAYED = Origin.REPLAYED


def name(number: int) -> str:
    return hashlib.sha256(f"report {number}".encode()).hexdigest()


def world(
    store: Store,
    *,
    drives: int = 20,
    mined: tuple[int, ...] = (),
    control: tuple[int, ...] = (),
    origin: Origin = Origin.HUMAN,
) -> tuple[Ref, Dataset]:
    """A selection of five mined and five control frames a drive, 10 s apart from each other.

    Args:
        mined: How many of its mined frames hold a cyclist, for each drive; then none.
        control: The same of its control frames.
    """
    frames, labels, chosen = [], [], []
    for drive in range(drives):
        for index in range(10):
            arm: Arm = "mined" if index < 5 else "control"
            number = 10 * drive + index
            frame = Frame(
                id=name(number),
                drive=f"d{drive:02}",
                index=index,
                timestamp_us=index * 20_000_000,
                width=100,
                height=80,
                suffix=".png",
                role=Role.TRAIN,
                conditions=Conditions(light=Light.NIGHT if drive % 2 else Light.DAY),
            )
            rare = (mined if arm == "mined" else control)[drive : drive + 1] or (0,)
            cls = "cyclist" if index % 5 < rare[0] else "car"
            frames.append(frame)
            labels.append(Label(frame=frame.id, cls=cls, box=BOX, origin=origin))
            chosen.append(SelectedFrame(frame=frame.id, rank=number + 1, score=0.5, arm=arm))
    dataset = Dataset(
        name="w",
        label_schema=SCHEMA,
        drives=tuple(Drive(id=f"d{drive:02}") for drive in range(drives)),
        frames=tuple(frames),
        labels=tuple(labels),
    )
    ref = datasets.save_dataset(store, dataset, made_by="test")
    selection = Selection(dataset=ref, budget=50, seed=0, method="m", chosen=tuple(chosen))
    return store.put(selection), datasets.load_dataset(store, ref)


def make_report(store: Store, selection: Ref, dataset: Dataset, **changed: Any) -> MiningReport:
    minutes = changed.pop("minutes", dict.fromkeys((f.id for f in dataset.frames), 0.5))
    simulated = changed.pop("simulated", False)
    rare = [curation.parse_rare(one, SCHEMA) for one in changed.pop("rare", ("class=cyclist",))]
    labelled = LabelledSelection(dataset, minutes, (f"label/{'1' * 64}",), simulated)
    ref = curation.report_mining(store, selection, labelled, rare, **changed)
    rows = store.payload(ref, "frames.jsonl").read_text().splitlines()
    assert {json.loads(row)["arm"] for row in rows} == {"mined", "control"}
    return store.get(ref, MiningReport)


def test_a_mined_arm_that_finds_more_passes(store: Store) -> None:
    selection, dataset = world(store, mined=(3, 2) * 10, control=(1, 0) * 10)
    record = make_report(store, selection, dataset)
    frames, events, objects = record.beaten
    assert (frames.mined, frames.control) == (50 / (50 / 60), 10 / (50 / 60))
    assert frames.value == pytest.approx(5.0)
    assert frames.low is not None
    assert frames.low > 2
    assert frames.verdict is Verdict.PASS
    assert (frames.drives, frames.unit) == (20, "20 drives")
    assert [one.figure for one in record.beaten] == [
        f"rare {what} per labeler hour" for what in ("frames", "events", "objects")
    ]
    assert events.value == pytest.approx(5.0)
    assert objects.value == pytest.approx(5.0)
    assert record.headline.startswith(
        "Mining beat random selection. rare frames per labeler hour: mined 60"
    )
    assert record.prevalence == 0.1
    assert record.prevalence_interval is not None
    assert record.prevalence_interval[0] < 0.1 < record.prevalence_interval[1]
    mined, control = record.arms
    assert (mined.rare_frames, mined.frames, mined.hours) == (50, 100, pytest.approx(50 / 60))
    assert (control.rare_frames, control.rare_events, control.unlabelled) == (10, 10, 0)


def test_equal_arms_are_insufficient_evidence(store: Store) -> None:
    selection, dataset = world(store, mined=(1, 0, 2, 0) * 5, control=(0, 2, 0, 1) * 5)
    first = make_report(store, selection, dataset).beaten[0]
    assert first.verdict is Verdict.INSUFFICIENT
    assert first.low is not None
    assert first.high is not None
    assert first.low < 1 < first.high
    assert "the interval includes 1" in describe_comparison(first)


def test_a_worse_arm_fails(store: Store) -> None:
    selection, dataset = world(store, mined=(1, 0) * 10, control=(4, 3) * 10)
    record = make_report(store, selection, dataset)
    assert record.beaten[0].verdict is Verdict.FAIL
    assert record.headline.startswith("Mining did worse than random selection.")


@pytest.mark.parametrize(
    ("mined", "control", "which"),
    [((3,) * 20, (), "control"), ((), (3,) * 20, "mined"), ((), (), "mined and the control")],
)
def test_an_arm_without_finds_is_insufficient_evidence(
    store: Store, mined: tuple[int, ...], control: tuple[int, ...], which: str
) -> None:
    selection, dataset = world(store, mined=mined, control=control)
    record = make_report(store, selection, dataset)
    first = record.beaten[0]
    assert (first.verdict, first.value) == (Verdict.INSUFFICIENT, None)
    assert f"the {which} arm found nothing" in record.headline
    assert record.headline.startswith("Insufficient evidence.")


def test_finds_in_few_drives_are_insufficient_evidence(store: Store) -> None:
    selection, dataset = world(store, mined=(5, 5, 5, 5), control=(0, 0, 0, 0, 1))
    first = make_report(store, selection, dataset).beaten[0]
    assert first.verdict is Verdict.INSUFFICIENT
    assert first.why == "finds in 5 drives only; at least 6 are needed"
    assert first.value == pytest.approx(20.0)


def test_one_control_frame_in_one_drive_gives_no_upper_bound(store: Store) -> None:
    selection, dataset = world(store, mined=(4,) * 20, control=(1,))
    first = make_report(store, selection, dataset).beaten[0]
    assert first.high is None
    assert first.low is not None
    assert first.verdict is Verdict.PASS
    assert "no upper bound" in describe_comparison(first)


def test_few_drives_cannot_be_generalised(store: Store) -> None:
    selection, dataset = world(store, drives=6, mined=(4,) * 6, control=(1,) * 6)
    first = make_report(store, selection, dataset).beaten[0]
    assert first.verdict is Verdict.INSUFFICIENT
    assert first.why == "6 drives are too few to generalise"
    assert first.unit == "60 blocks of 10 s of 6 drives"
    assert first.value == pytest.approx(4.0)


def test_replayed_labels_say_so_first_and_count_frames_or_a_stated_pace(store: Store) -> None:
    selection, dataset = world(store, mined=(3,) * 20, control=(1,) * 20, origin=REPLAYED)
    nobody: dict[str, float | None] = {frame.id: None for frame in dataset.frames}
    record = make_report(store, selection, dataset, minutes=nobody, simulated=True)
    assert record.headline.startswith("SIMULATED: labels were replayed")
    assert record.per == "per 100 frames"
    assert record.beaten[0].mined == pytest.approx(60.0)
    assert record.arms[0].hours is None
    pace = LabelingPace(seconds_per_frame=10, seconds_per_box=8)
    record = make_report(store, selection, dataset, minutes=nobody, simulated=True, pace=pace)
    assert record.per == "per labeler hour"
    assert "not measured" in record.time_from
    assert record.arms[0].hours == pytest.approx(100 * 18 / 3600)


def test_unlabelled_frames_are_skipped_and_counted(store: Store) -> None:
    selection, dataset = world(store, mined=(3,) * 20, control=(1,) * 20)
    some = {frame.id: 0.5 for frame in dataset.frames if frame.index != 4}
    record = make_report(store, selection, dataset, minutes=some)
    assert [(arm.frames, arm.unlabelled) for arm in record.arms] == [(80, 20), (100, 0)]
    with pytest.raises(ParameterError, match="no frame of the control arm"):
        make_report(store, selection, dataset, minutes={name(0): 1.0})


def test_without_a_control_arm_nothing_can_be_said(store: Store) -> None:
    selection, dataset = world(store)
    plain = store.get(selection, Selection)
    chosen = tuple(one for one in plain.chosen if one.arm == "mined")
    ref = store.put(plain.model_copy(update={"chosen": chosen}))
    with pytest.raises(ParameterError, match="no control arm"):
        make_report(store, ref, dataset)


def test_what_is_rare_can_be_said_in_conditions(store: Store) -> None:
    selection, dataset = world(store, mined=(2,) * 20, control=(2,) * 20)
    both = make_report(store, selection, dataset, rare=("class=cyclist+light=night",))
    assert [arm.rare_frames for arm in both.arms] == [20, 20]
    frames = make_report(store, selection, dataset, rare=("light=night",))
    assert [arm.rare_frames for arm in frames.arms] == [50, 50]
    for wrong, said in (
        ("class=cyclst", "Did you mean 'cyclist'"),
        ("cyclist", "Write class=NAME"),
    ):
        with pytest.raises(ParameterError) as caught:
            curation.parse_rare(wrong, SCHEMA)
        assert said in str(caught.value.hint)


def test_rare_classes_come_from_earlier_labels(store: Store) -> None:
    _, dataset = world(store, mined=(1,))
    assert [one.text for one in curation.rare_classes(dataset)] == ["class=cyclist"]
    _, common = world(store, mined=(3,) * 20)
    with pytest.raises(ParameterError, match="no rare class: each is on at least 5%"):
        curation.rare_classes(common)


@pytest.mark.parametrize("richness", [0.15, 0.5, 2.0])
def test_equal_arms_rarely_pass(richness: float) -> None:
    """Mining as good as chance, in drives of which a few hold most: some 6 to 80 finds an arm."""
    rng = np.random.default_rng(0)
    units = resampling.ResamplingUnits(np.arange(40), 40, 40, "40 drives")
    wins = losses = 0
    for _ in range(200):
        rate = rng.gamma(0.5, 2 * richness, 40)
        arms = [ArmYield(rng.poisson(rate).astype(float), np.full(40, 5.0)) for _ in range(2)]
        verdict = report.compare_arms("f", arms[0], arms[1], units).verdict
        wins += verdict is Verdict.PASS
        losses += verdict is Verdict.FAIL
    assert wins <= 0.05 * 200
    assert losses <= 0.05 * 200


def test_the_plot_shows_every_metric_with_its_interval(store: Store, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    selection, dataset = world(store, mined=(3, 2) * 10, control=(1,) * 8)
    figure = plots.arm_comparison(make_report(store, selection, dataset, simulated=True))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sum("PASS\n20 drives" in text for text in texts) == 3
    assert texts[0].startswith("6.25 [")
    assert "SIMULATED" in figure.axes[0].get_title(loc="left")
    figure.savefig(tmp_path / "arms.png")
    plt.close("all")


def _promised(low: float, high: float) -> Backtest:
    """A promise for cyclists, and for a union that the report does not speak of."""
    numbers = {"prevalence": 0.1, "lift": 2.0, "lift_low": 1.0, "lift_high": 3.0}
    expected = [
        ExpectedYield(kind=kind, frames=9, rate=(low + high) / 2, low=low, high=high, **numbers)
        for kind in ("class=cyclist", Backtest.ANY, "light=night")
    ]
    return Backtest(
        frames=90,
        drives=30,
        share=0.1,
        led_by="weighed",
        signals=(),
        any_of=("class=cyclist", "class=car"),
        expected=tuple(expected),
        reason="beat chance on the labelled drives: watch",
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.4, 0.6, "kept"), (0.7, 0.9, "broken"), (0.05, 0.2, "exceeded")],
)
def test_the_promise_is_compared_with_what_was_found(
    store: Store, low: float, high: float, verdict: str
) -> None:
    """Half of the mined frames have a cyclist: [0.4, 0.6]."""
    selection, dataset = world(store, mined=(3, 2) * 10, control=(1, 0) * 10)
    record = store.get(selection, Selection)
    promising = store.put(record.model_copy(update={"backtest": _promised(low, high)}))
    checks = make_report(store, promising, dataset).promises
    assert [one.kind for one in checks] == ["class=cyclist"]
    assert checks[0].verdict == verdict
    assert checks[0].found[0] == 0.5
    assert 0.35 < checks[0].found[1] < 0.5 < checks[0].found[2] < 0.65
    assert describe_promise(checks[0]).endswith(verdict)
    both = make_report(store, promising, dataset, rare=("class=cyclist", "class=car")).promises
    assert [one.kind for one in both] == ["class=cyclist", Backtest.ANY]
    assert both[1].found[0] == 1.0
    assert make_report(store, selection, dataset).promises == ()
