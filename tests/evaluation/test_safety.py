"""Safety metrics beside a second implementation or a closed form."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt

from workbench.core import digest
from workbench.data import resampling
from workbench.detection.model import Predictions
from workbench.evaluation import plots
from workbench.evaluation.confidence import (
    OperatingPointRule,
    calibration,
    choose_operating_point,
)
from workbench.evaluation.gate_rules import GateRules
from workbench.evaluation.gates import judge, load_comparison, save_report
from workbench.evaluation.metrics import (
    StudentizedRatio,
    evaluate,
    holm_levels,
    operating_counts,
)
from workbench.evaluation.results import EvaluationSettings
from workbench.evaluation.safety import (
    SafetyAssumptions,
    SafetyMetrics,
    ground_positions,
    measure_safety,
)
from workbench.evaluation.sequences import detection_delay
from workbench.records.base import GateReport, Verdict, make_ref
from workbench.records.frames import Calibration, Drive
from workbench.simulation import geometry
from workbench.simulation.scenario import Camera

CAMERA = Camera(height_m=1.4, pitch_deg=2.0)
SPEED = SafetyAssumptions(speed_kmh=50)


def standing_at(forward: float, right: float, size: float = 40.0) -> tuple[float, ...]:
    """A box whose lower edge is centred on a point of the road, by the renderer's projection."""
    ((u, v),), _ = geometry.project(CAMERA, np.array([[forward, -right, 0.0]]))
    return (u - size / 2, v - size, size, size)


def with_camera(dataset, *names):
    own = Calibration(fx=CAMERA.fx, fy=CAMERA.fy, cx=CAMERA.cx, cy=CAMERA.cy)
    known = {"camera_height_m": CAMERA.height_m, "camera_pitch_deg": CAMERA.pitch_deg}
    drives = tuple(
        drive.model_copy(update=known | {"calibration": own}) if drive.id in names else drive
        for drive in dataset.drives
    )
    return replace(dataset, drives=drives)


def measured(dataset, found, assumptions=SPEED, threshold=0.3):
    settings = EvaluationSettings(resamples=100, threshold=threshold)
    return measure_safety(evaluate(Predictions(dataset, found), settings=settings), assumptions)


def test_positions_are_those_that_the_renderer_projects():
    random = np.random.default_rng(0)
    camera = np.array([[1.4, 2.0, 400, 400, 240, 130]])
    for forward, right in zip(random.uniform(4, 90, 50), random.uniform(-6, 6, 50), strict=True):
        x, y, w, h = standing_at(forward, right)
        ((far, left, to),) = ground_positions(np.array([[x + w / 2, y, 0.0, h]]), camera)
        assert (far, left, to) == pytest.approx((forward, right, right))
    above = ground_positions(np.array([[200.0, 0, 40, 60]]), camera)
    assert np.isnan(above).all(), "a lower edge above the horizon touches no road"


def test_the_stopping_distance_is_reaction_and_braking():
    distance = SafetyAssumptions(reaction_s=0.5, deceleration_ms2=8).stopping_distance(72)
    assert distance == pytest.approx(20 * 0.5 + 20**2 / 16)


def test_critical_errors_lie_in_the_path_and_within_stopping_distance(build):
    frames = [build.frame(drive) for drive in ("a", "b")]
    labels = [
        build.label(frames[0], cls, standing_at(*place))
        for cls, place in (
            ("pedestrian", (15, 0)),  # in the path
            ("car", (25, 0.5)),  # in the path, found
            ("car", (15, 5)),  # aside
            ("car", (60, 0)),  # 33.2 m are needed to stop
        )
    ]
    labels.append(build.label(frames[1], "car", standing_at(15, 0)))  # nobody knows the camera
    found = [
        build.prediction(frames[0], "car", standing_at(25, 0.5)),
        build.prediction(frames[0], "cyclist", standing_at(15, 0)),  # on the pedestrian
        build.prediction(frames[0], "car", standing_at(10, 0, 20)),  # on nothing
        build.prediction(frames[0], "car", standing_at(10, -6, 20)),  # on nothing, aside
        build.prediction(frames[0], "car", standing_at(9, 0, 10), 0.1),  # below the threshold
    ]
    dataset = with_camera(build.dataset(frames, labels), "a")
    critical = measured(dataset, found).metrics.critical
    assert (critical.boxes, critical.misses, critical.confused_misses) == (2, 1, 1)
    assert (critical.false_positives, critical.confused_false_positives) == (2, 1)
    assert critical.misses_by_class == {"car": (0, 1), "pedestrian": (1, 1)}
    assert critical.miss_rate.value == 0.5
    assert critical.false_positive_rate.value == 1
    assert (critical.frames, critical.drives) == (1, 1)
    assert critical.excluded == {"no camera height, camera pitch, focal length": 1}


def test_what_is_assumed_is_counted_and_said(build):
    frames = [build.frame(drive) for drive in ("a", "b")]
    box = standing_at(15, 0)
    dataset = build.dataset(frames, [build.label(frame, "car", box) for frame in frames])
    whole = SafetyAssumptions(
        speed_kmh=50, camera_height_m=1.4, camera_pitch_deg=2, horizontal_view_deg=61.93
    )
    safety = measured(with_camera(dataset, "a"), [], whole).metrics
    assert (safety.critical.frames, safety.critical.misses) == (2, 2)
    said = "\n".join(safety.lines())
    assert "camera height 1.4 m for 1 frame" in said
    assert "speed 50 km/h for 2 frames" in said
    none = measured(dataset, [], SafetyAssumptions()).metrics
    assert none.critical.excluded == {"no camera height, camera pitch, focal length, speed": 2}
    known = replace(
        with_camera(dataset, "a"),
        frames=tuple(one.model_copy(update={"attributes": {"speed_kmh": "20"}}) for one in frames),
    )
    own_speed = measured(known, [], SafetyAssumptions()).metrics.critical
    assert (own_speed.frames, own_speed.boxes) == (1, 0), "at 20 km/h it stops within 8.6 m"


def test_miss_rates_count_every_label_once_in_each_kind_of_bin(build):
    case = build.random(3)
    dataset = with_camera(case.dataset, *(drive.id for drive in case.dataset.drives))
    safety = measured(dataset, case.predictions).metrics
    evaluation = evaluate(Predictions(dataset, case.predictions), settings=build.quick)
    row = evaluation.metrics.at()
    for kind in ("distance", "size", "occlusion"):
        rates = [rate for rate in safety.miss_rates if rate.by == kind]
        assert sum(rate.boxes for rate in rates) == row.boxes
        assert sum(rate.misses for rate in rates) == row.fn
        assert all(rate.rate.value == rate.misses / rate.boxes for rate in rates)
    small = sum(label.box.w * label.box.h < 32**2 for label in dataset.labels if not label.ignore)
    bins = {rate.bin: rate.boxes for rate in safety.miss_rates if rate.by == "size"}
    assert bins["0-16 px"] + bins["16-32 px"] == small


def test_calibration_error_equals_a_plain_loop_and_is_zero_for_a_calibrated_model(build):
    case = build.random(4)
    evaluation = evaluate(Predictions(case.dataset, case.predictions), settings=build.quick)
    found = calibration(evaluation).metrics
    table = evaluation.tables["all"]
    pairs = [
        (score, bool(hit))
        for score, hit, ignored in zip(table.score, table.hit[0], table.ignored[0], strict=True)
        if score >= found.lowest and not ignored
    ]
    error = 0.0
    for number in range(10):
        low, high = number / 10, (number + 1) / 10
        inside = [pair for pair in pairs if low <= pair[0] < high or (high == 1 == pair[0])]
        if inside:
            confidence, precision = np.mean([s for s, _ in inside]), np.mean([h for _, h in inside])
            error += len(inside) / len(pairs) * abs(confidence - precision)
    assert found.error.value == pytest.approx(error)
    assert found.boxes == len(pairs)

    frames = [build.frame(f"d{number}") for number in range(12)]
    box = (10.0, 10.0, 60.0, 60.0)
    dataset = build.dataset(frames, [build.label(frame, "car", box) for frame in frames[:9]])
    sure = [build.prediction(frame, "car", box, 0.75) for frame in frames]
    perfect = calibration(evaluate(Predictions(dataset, sure), settings=build.quick)).metrics
    assert perfect.error.value == pytest.approx(0)
    assert perfect.bias == pytest.approx(0)


def test_slices_of_labels_have_no_calibration(build):
    case = build.random(4)
    slices = {one.slice for one in measured(case.dataset, case.predictions).metrics.calibration}
    assert {"all", "light=night", "vru"} <= slices
    assert not slices & {"occluded", "size=small"}


def test_the_threshold_is_the_lowest_from_which_on_precision_holds(build):
    random = np.random.default_rng(0)
    frames = [build.frame(f"d{number:03d}") for number in range(300)]
    box = (10.0, 10.0, 60.0, 60.0)
    scores = random.uniform(0.05, 0.95, 300).tolist()
    right = random.uniform(size=300) < scores  # a box is right as often as its score says
    dataset = build.dataset(
        frames,
        [build.label(frame, "car", box) for frame, hit in zip(frames, right, strict=True) if hit],
    )
    found = [build.prediction(one, "car", box, s) for one, s in zip(frames, scores, strict=True)]
    rule = OperatingPointRule(precision=0.7, min_boxes=50)
    point = choose_operating_point(Predictions(dataset, found), rule, 0.3)

    def row(threshold):
        settings = EvaluationSettings(resamples=100, threshold=threshold)
        return evaluate(Predictions(dataset, found), settings=settings).metrics.at()

    assert row(point.threshold).precision.value >= 0.7
    assert row(point.threshold - 0.01).precision.value < 0.7
    assert row(point.threshold).recall.value == pytest.approx(point.recall)
    many = OperatingPointRule(precision=0.7, min_boxes=10**6)
    kept = choose_operating_point(Predictions(dataset, found), many, 0.3)
    assert kept.threshold == 0.3
    assert "1000000 needed" in kept.how
    wrong = [one.model_copy(update={"cls": "truck"}) for one in found]
    never = choose_operating_point(Predictions(dataset, wrong), rule, 0.3)
    assert never.threshold == 0.3
    assert "no threshold" in never.how


def approach(build, drives=12, found_from=10, first=2, speed=10.0):
    """A car that is 60 m away when it is first labelled and comes nearer; 10 frames a second."""
    frames, labels, found = [], [], []
    for number in range(drives):
        for index in range(30):
            frame = build.frame(f"d{number:02d}", index, timestamp_us=index * 100_000)
            frames.append(frame)
            if index >= first:
                height = 400 * 1.5 / (60 - speed * (index - first) * 0.1)
                box = (100.0, 100.0, 30.0, height)
                labels.append(build.label(frame, "car", box, track="1"))
                if index >= found_from or index == first + 1:  # one lucky frame is not enough
                    found.append(build.prediction(frame, "car", box))
    return build.dataset(frames, labels), found


def test_delay_and_time_to_collision_have_their_closed_form(build):
    dataset, found = approach(build)
    delay = detection_delay(evaluate(Predictions(dataset, found), settings=build.quick))
    everything, cars = delay.rows
    assert everything.delay_s == cars.delay_s
    assert cars.delay_s.value == pytest.approx(1.0)  # frames 2 to 12, the third in a row
    distance = 60 - 10 * 1.0
    assert cars.ttc_s.value == pytest.approx(distance / 10, rel=0.01)
    assert (delay.drives, delay.video, cars.tracks, cars.approaching) == (12, 12, 12, 12)
    assert delay.usable
    never = detection_delay(evaluate(Predictions(dataset, []), settings=build.quick)).rows[0]
    assert (never.never.value, never.delay_s.value, never.detected) == (1.0, None, 0)


def test_drives_that_cannot_tell_are_counted(build):
    video, found = approach(build, drives=1, first=0)
    frames = [
        build.frame("photo"),
        *(build.frame("slow", n, timestamp_us=n * 5_000_000) for n in range(4)),
    ]
    frames += [build.frame("untimed", n, timestamp_us=None) for n in range(4)]
    dataset = build.dataset([*video.frames, *frames], video.labels)
    delay = detection_delay(evaluate(Predictions(dataset, found), settings=build.quick))
    assert delay.excluded == {
        "drives of fewer than 3 frames": 1,
        "drives whose frames are more than 1 s apart or out of order": 1,
        "drives without times": 1,
        "objects in view when the drive begins": 1,
    }
    assert (delay.drives, delay.video, delay.rows) == (4, 1, ())
    assert "1 of 4 drives are video" in delay.lines()[0]


def test_holm_rejects_exactly_what_its_adjusted_p_values_reject():
    random = np.random.default_rng(0)
    for _ in range(300):
        p = random.uniform(0, 0.06, random.integers(1, 9)).tolist()
        order = np.argsort(p)
        adjusted = np.maximum.accumulate(
            [(len(p) - rank) * p[number] for rank, number in enumerate(order)]
        )
        expected = {int(number) for number, q in zip(order, adjusted, strict=True) if q <= 0.05}
        levels = holm_levels(p, 0.05)
        assert {n for n, level in enumerate(levels) if p[n] <= level} == expected


CEILING = {
    "name": "critical",
    "kind": "ceiling",
    "metric": "critical_miss_rate",
    "bound": 0.3,
    "min_n": 12,
}


def test_a_ceiling_is_judged_and_its_figures_are_stored(build, store):
    frames = [build.frame(f"d{n:02d}", i) for n in range(12) for i in range(3)]
    box = standing_at(15, 0)
    dataset = build.dataset(frames, [build.label(frame, "car", box) for frame in frames])
    dataset = with_camera(dataset, *(drive.id for drive in dataset.drives))
    rules = GateRules.model_validate(
        {
            "schema_version": 1,
            "evaluation": {"resamples": 100},
            "assumptions": {"speed_kmh": 50},
            "gates": [CEILING],
        }
    )

    def judged(data, keep):
        found = [build.prediction(frame, "car", box) for frame in data.frames[::keep]]
        return judge(rules, evaluate(Predictions(data, found), settings=rules.evaluation))

    assert judged(dataset, 1).verdict is Verdict.PASS
    failed = judged(dataset, 3)
    (gate,) = failed.gates
    assert gate.verdict is Verdict.FAIL
    assert (gate.n, gate.unit) == (36, "labels in the path")
    assert gate.low > 0.3
    blind = judged(build.dataset(frames, dataset.labels), 1)
    assert blind.verdict is Verdict.INSUFFICIENT
    assert "36 frames no camera height" in blind.gates[0].why
    ref = save_report(
        store,
        failed,
        candidate=make_ref("bundle", digest.of_bytes(b"b")),
        dataset=make_ref("dataset", digest.of_bytes(b"d")),
    )
    payload = json.loads(store.read_payload(ref, "metrics.json"))
    assert SafetyMetrics.model_validate(payload["safety"]) == failed.safety
    assert payload["schema_version"] == 2
    assert load_comparison(store, ref) == []


def test_a_report_from_before_safety_metrics_is_read(store):
    report = GateReport(
        candidate=make_ref("bundle", "a" * 64),
        reference=None,
        dataset=make_ref("dataset", "b" * 64),
        rules="c" * 64,
        verdict=Verdict.PASS,
        gates=(),
    )
    ref = store.put(report, {"metrics.json": b'{"schema_version": 1, "models": {}}'})
    assert load_comparison(store, ref) == []


def test_safety_is_drawn(build):
    case = build.random(6)
    safety = measured(case.dataset, case.predictions).metrics
    drawn = plots.miss_rates(safety)
    assert "by size" in [axis.get_title(loc="left") for axis in drawn.axes]
    curve = plots.reliability(safety)
    assert f"{safety.estimates['calibration_error']}" in curve.get_suptitle()
    empty = build.dataset([build.frame()])
    assert plots.reliability(measured(empty, []).metrics)
    assert plots.miss_rates(measured(empty, []).metrics)
    plt.close("all")


def test_a_drive_that_is_not_listed_tells_no_camera(build):
    frame = build.frame("a")
    dataset = replace(build.dataset([frame]), drives=(Drive(id="other", camera_height_m=1.0),))
    assert measured(dataset, []).metrics.critical.frames == 0


def test_bootstrap_t_of_a_ratio_has_its_closed_form_and_its_inverse(build):
    random = np.random.default_rng(0)
    boxes = random.poisson(20, 60) + 1
    hits = random.binomial(boxes, random.beta(3, 7, 60))
    weights = resampling.draw_resamples(60, 1000, 0)
    ratio = StudentizedRatio.of(hits, boxes, weights)
    value = hits.sum() / boxes.sum()
    rest = hits - value * boxes
    error = np.sqrt(60 / 59 * (rest**2).sum()) / boxes.sum()  # Taylor linearisation over drives
    assert (ratio.value[0], ratio.error[0]) == (pytest.approx(value), pytest.approx(error))
    low, high = ratio.bounds(0.05)
    assert low < value < high
    normal = value - 1.645 * error, value + 1.645 * error
    assert (low, high) == (pytest.approx(normal[0], abs=0.02), pytest.approx(normal[1], abs=0.02))
    for limit, above in ((low, True), (high, False)):
        assert ratio.one_sided_p(limit, above=above) == pytest.approx(0.05, abs=0.002)
    assert not StudentizedRatio.of(boxes, boxes, weights).defined


def test_counts_at_the_operating_point_are_those_of_the_metrics(build):
    case = build.random(2, drives=35)
    evaluation = evaluate(Predictions(case.dataset, case.predictions), settings=build.quick)
    for part, cls in (("all", "all"), ("light=night", "car"), ("vru", "all")):
        row = evaluation.metrics.at(part, cls)
        counts = [int(each.sum()) for each in operating_counts(evaluation, part, cls)]
        assert counts == [row.tp, row.fp, row.boxes]
