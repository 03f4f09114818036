"""Agreement of labelers, with expected values computed by hand."""

from __future__ import annotations

from workbench.labeling.agreement import (
    agreement_rate,
    compare_answers,
    consensus_labels,
    describe_disputes,
    measure_agreement,
    preferred_labeler,
)
from workbench.records.frames import Box, Label, Origin

FRAME = "a" * 64


def label(x: float, cls: str = "car", *, ignore: bool = False) -> Label:
    box = Box(x=x, y=0, w=10, h=10)
    return Label(frame=FRAME, cls=cls, box=box, origin=Origin.HUMAN, ignore=ignore)


def test_matched_missed_and_different_class() -> None:
    ada = [label(0), label(100), label(200)]
    bob = [label(2), label(100, "bus"), label(400, ignore=True)]
    result = measure_agreement({FRAME: {"ada": ada, "bob": bob}, "b" * 64: {"ada": ada}})
    assert result["frames"] == 1
    assert result["boxes"] == 5
    # 8/12 of the first pair and all of the second overlap; one of five boxes has no match.
    assert result["mean_iou"] == round((8 / 12 + 1) / 2, 6)
    assert result["missed_rate"] == 0.2
    assert result["class_agreement"] == 0.5


def test_without_comparisons_rates_are_none() -> None:
    result = measure_agreement({FRAME: {"ada": [label(0)]}})
    assert (result["frames"], result["mean_iou"], result["missed_rate"]) == (0, None, None)
    empty = measure_agreement({FRAME: {"ada": [], "bob": []}})
    assert (empty["frames"], empty["mean_iou"], empty["missed_rate"]) == (1, None, None)


def test_the_preferred_labeler_is_deterministic_and_unbiased() -> None:
    frames = [f"{number:064x}" for number in range(400)]
    taken = [preferred_labeler(frame, ["ada", "bob"]) for frame in frames]
    assert taken == [preferred_labeler(frame, ["bob", "ada"]) for frame in frames]
    assert 150 < taken.count("ada") < 250


def test_kappa_missed_rate_and_iou_by_class_and_labeler() -> None:
    """Ada: 3 cars, 1 bus; Bob: calls one car a bus and misses another."""
    ada = [label(0), label(100), label(200), label(300, "bus")]
    bob = [label(0), label(100, "bus"), label(300, "bus")]
    one = compare_answers(FRAME, "ada", ada, "bob", bob)
    whole = agreement_rate([one], "all", "all")
    assert (whole.frames, whole.n, whole.iou) == (1, 7, 1.0)
    assert whole.missed == round(1 / 7, 6)
    # Both ways round: car-car 2, car-bus 1, bus-car 1, bus-bus 2; agreement 4/6, by chance 1/2.
    assert whole.kappa == round((4 / 6 - 1 / 2) / (1 / 2), 6)
    cars = agreement_rate([one.of_class("car")], "class", "car")
    assert (cars.n, cars.missed) == (5, 0.2)
    assert (
        agreement_rate([one], "labeler", "ada").missed == 0.0
    )  # nothing that Bob drew and Ada did not
    assert agreement_rate([one.reversed()], "labeler", "bob").missed == 0.25


def test_without_matches_only_the_missed_rate_is_defined() -> None:
    rate = agreement_rate([compare_answers(FRAME, "ada", [label(0)], "bob", [])], "all", "all")
    assert (rate.n, rate.missed, rate.iou, rate.kappa) == (1, 1.0, None, None)
    assert agreement_rate([], "all", "all").missed is None


def test_intervals_resample_frames_and_are_deterministic() -> None:
    names = [f"{number:064x}" for number in range(40)]
    full, half = [label(0), label(100)], [label(0)]
    compared = [
        compare_answers(frame, "ada", full, "bob", full if number % 2 else half)
        for number, frame in enumerate(names)
    ]
    rate = agreement_rate(compared, "all", "all")
    assert rate == agreement_rate(compared, "all", "all")
    assert rate.missed is not None and rate.missed_interval is not None
    low, high = rate.missed_interval
    assert low < rate.missed < high
    assert rate.kappa is None and rate.kappa_interval is None  # one class: nothing to confuse


def test_three_labelers_vote_two_do_not() -> None:
    answers = {
        "ada": [label(0), label(100)],
        "bob": [label(1), label(100, "bus")],
        "cy": [label(2), label(100, "bus"), label(500)],
    }
    labels = consensus_labels(FRAME, answers)
    assert [(one.cls, one.box.x) for one in labels] == [("car", 1), ("bus", 100)]
    two = {who: answers[who] for who in ("ada", "bob")}
    assert consensus_labels(FRAME, two) == two[preferred_labeler(FRAME, ["ada", "bob"])]


def test_disputes_name_no_labeler() -> None:
    answers = {"ada": [label(0), label(100)], "bob": [label(100, "bus"), label(9, ignore=True)]}
    assert describe_disputes(answers) == ["a car drawn by 1 of 2", "one object called bus and car"]
    assert describe_disputes({"ada": [label(0)], "bob": [label(1)]}) == []
    assert describe_disputes({"ada": [label(0)]}) == []
