"""Gates file: values, defaults and errors; and the verdicts of gates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from workbench.core import digest
from workbench.core.errors import ParameterError, VerificationError
from workbench.detection.model import Predictions
from workbench.evaluation import plots
from workbench.evaluation.gates import (
    FloorGate,
    GateRules,
    judge,
    load_rules,
    overall_verdict,
    save_report,
)
from workbench.evaluation.metrics import evaluate
from workbench.records.base import GateReport, GateResult, Verdict, make_ref
from workbench.records.frames import Origin
from workbench.records.types import Inspection

PROJECT_RULES = Path(__file__).resolve().parents[2] / "pipelines" / "gates.yaml"

GATE = {"name": "ap50", "kind": "floor", "metric": "ap50", "bound": 0.5}


def written(tmp_path: Path, *gates: dict[str, object], **more: object) -> Path:
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump({"schema_version": 1, "gates": list(gates), **more}))
    return path


def test_the_projects_own_gates_are_read_and_cover_every_kind():
    rules = load_rules(PROJECT_RULES)
    assert {gate.kind for gate in rules.gates} == {
        "floor",
        "no_regression",
        "int8_loss",
        "ceiling",
        "no_leaks",
    }
    assert any(getattr(gate, "slice", "") == "vru" and gate.required for gate in rules.gates)


def test_simulated_drives_have_lower_floors_and_the_same_kinds_of_gates():
    real, simulated = (
        load_rules(PROJECT_RULES.with_name(name)) for name in ("gates.yaml", "gates_simulated.yaml")
    )
    floors = {gate.name: gate.bound for gate in real.gates if isinstance(gate, FloorGate)}
    lower = {gate.name: gate.bound for gate in simulated.gates if isinstance(gate, FloorGate)}
    assert lower
    assert all(bound < floors[name] for name, bound in lower.items())
    assert {gate.kind for gate in real.gates} == {gate.kind for gate in simulated.gates}


def test_omitted_values_have_the_documented_default(tmp_path):
    (gate,) = load_rules(written(tmp_path, GATE)).gates
    assert isinstance(gate, FloorGate)
    assert (gate.slice, gate.cls, gate.min_drives, gate.required) == ("all", "all", 10, True)


def test_digest_depends_on_the_values_and_not_on_the_formatting(tmp_path):
    first = load_rules(written(tmp_path, GATE)).digest
    assert load_rules(written(tmp_path, {**GATE, "slice": "all"})).digest == first
    assert load_rules(written(tmp_path, {**GATE, "bound": 0.51})).digest != first
    assert load_rules(written(tmp_path, GATE, evaluation={"threshold": 0.4})).digest != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slise": "all"}, "unknown key 'slise'.*gate ap50.*Did you mean 'slice'"),
        ({"clas": "car"}, "Did you mean 'class'"),
        ({"cls": "car", "class": "car"}, "cls"),
        ({"kind": "flor"}, "unknown kind 'flor'.*Did you mean 'floor'"),
        ({"metric": "ap_50"}, "unknown value 'ap_50'.*Did you mean 'ap50'"),
        ({"slice": "night"}, "unknown value 'night'.*Did you mean 'light=night'"),
        ({"slice": ["vru"]}, "slice"),
        ({"bound": 50}, "bound: .*less than or equal to 1"),
        ({"bound": None}, "bound"),
        ({"margin": 0.1}, "unknown key 'margin'"),
        ({"min_drives": 5}, "min_drives: .*greater than or equal to 10"),
        ({"name": "AP 50"}, "name"),
        ({"required": False}, "no gate is required"),
    ],
)
def test_mistakes_in_a_gate_are_named(tmp_path, change, message):
    with pytest.raises(ParameterError, match=message):
        load_rules(written(tmp_path, {**GATE, **change}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "gates.yaml"),
        ("- a\n- b\n", "gates.yaml"),
        ("gates: [", "not YAML"),
        ("schema_version: 2\ngates: []\n", "schema_version"),
        ("schema_version: 1\ngates: []\n", "gates: .*at least 1"),
        ("schema_version: 1\ngates: [3]\n", "gate 1"),
        ("schema_version: 1\nevaluation: {treshold: 0.3}\ngates: []\n", "'threshold'"),
        ("schema_version: 1\ngate: []\n", "unknown key 'gate'.*'gates'"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message):
        load_rules(path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(VerificationError, match="would run code"):
        load_rules(path)


def test_duplicate_gate_names_are_rejected(tmp_path):
    with pytest.raises(ParameterError, match="two gates are named 'ap50'"):
        load_rules(written(tmp_path, GATE, GATE))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParameterError, match=r"gates file does not exist .*nowhere\.yaml"):
        load_rules(tmp_path / "nowhere.yaml")
    with pytest.raises(ParameterError, match="cannot be read"):
        load_rules(tmp_path)


# Verdicts follow the interval, and only complete evidence passes.


EVIDENCE = {"min_boxes": 5}
FLOOR = {"name": "recall", "kind": "floor", "metric": "recall", "bound": 0.5, **EVIDENCE}
KEEP = {"name": "keep", "kind": "no_regression", "metric": "ap", "margin": 0.02, **EVIDENCE}
INT8 = {"name": "int8", "kind": "int8_loss", "metric": "ap", "margin": 0.02, **EVIDENCE}


def rules_of(*gates: dict[str, object]) -> GateRules:
    return GateRules.model_validate(
        {"schema_version": 1, "evaluation": {"resamples": 100}, "gates": list(gates)}
    )


@pytest.fixture(scope="module")
def graded(build):
    """Models that find every box, a half, two in three, or none, on twelve drives."""
    frames = [build.frame(f"d{drive:02d}", index) for drive in range(12) for index in range(6)]
    box = (10.0, 10.0, 60.0, 60.0)
    dataset = build.dataset(frames, [build.label(frame, "car", box) for frame in frames])
    settings = rules_of(FLOOR).evaluation

    def finding(keep):
        found = [
            build.prediction(frame, "car", box, 0.9)
            for workspace, frame in enumerate(frames)
            if keep(workspace, frame)
        ]
        return evaluate(Predictions(dataset, found), settings=settings)

    return {
        "all": finding(lambda workspace, frame: True),
        "most": finding(lambda workspace, frame: frame.index < 4),
        "half": finding(
            lambda workspace, frame: (frame.index + int(frame.drive[1:]) // 4) % 2 == 0
        ),
        "some drives": finding(lambda workspace, frame: int(frame.drive[1:]) % 2 == 0),
        "none": finding(lambda workspace, frame: False),
    }


def test_a_floor_is_decided_by_the_whole_interval(graded):
    verdicts = {
        name: judge(rules_of(FLOOR), graded[name]).gates[0].verdict
        for name in ("most", "some drives", "none")
    }
    assert verdicts == {
        "most": Verdict.PASS,
        "some drives": Verdict.INSUFFICIENT,
        "none": Verdict.FAIL,
    }


def test_result_explains_its_evidence(graded):
    (gate,) = judge(rules_of(FLOOR), graded["some drives"]).gates
    assert gate.low < 0.5 <= gate.value < gate.high
    assert (gate.n, gate.unit, gate.bound) == (72, "boxes", 0.5)
    assert "72 boxes on 72 frames of 12 drives" in gate.why
    assert "lies between the bounds" in gate.why
    assert "12 drives" in gate.method


def test_insufficient_evidence_says_how_many_more_drives_would_decide(build, graded):
    rules = rules_of({**FLOOR, "bound": 0.35})

    def verdict_of(drives: int) -> GateResult:
        """Half of the drives are found, however many there are."""
        frames = [build.frame(f"d{drive:03d}", 0) for drive in range(drives)]
        box = (10.0, 10.0, 60.0, 60.0)
        dataset = build.dataset(frames, [build.label(frame, "car", box) for frame in frames])
        found = [build.prediction(frame, "car", box) for frame in frames[::2]]
        predictions = Predictions(dataset, found)
        return judge(rules, evaluate(predictions, settings=rules.evaluation)).gates[0]

    undecided = verdict_of(12)
    assert undecided.verdict is Verdict.INSUFFICIENT
    more = int(
        re.search(r"about (\d+) more drives of this slice .* would decide", undecided.why)[1]
    )
    assert more > 10
    assert verdict_of(12 + more // 3).verdict is Verdict.INSUFFICIENT
    assert verdict_of(12 + 2 * more).verdict is Verdict.PASS
    (near,) = judge(rules_of(FLOOR), graded["some drives"]).gates
    assert "too near the limit" in near.why


def test_regression_is_judged_on_the_paired_difference(graded):
    rules = rules_of(KEEP)
    assert judge(rules, graded["most"], reference=graded["most"]).verdict is Verdict.PASS
    assert judge(rules, graded["all"], reference=graded["half"]).verdict is Verdict.PASS
    worse = judge(rules, graded["half"], reference=graded["all"])
    assert worse.verdict is Verdict.FAIL
    assert worse.gates[0].value < worse.gates[0].bound == -0.02


def test_without_a_reference_model_the_verdict_is_insufficient(graded):
    for gate in (KEEP, INT8):
        judged = judge(rules_of(gate), graded["all"])
        assert judged.verdict is Verdict.INSUFFICIENT
        assert judged.gates[0].value is None


def test_the_loss_of_int8_may_not_exceed_its_margin(graded):
    rules = rules_of(INT8)
    assert judge(rules, graded["most"], fp32=graded["most"]).verdict is Verdict.PASS
    lossy = judge(rules, graded["half"], fp32=graded["all"])
    assert lossy.verdict is Verdict.FAIL
    assert lossy.gates[0].low > 0.02
    assert judge(rules, graded["all"], fp32=graded["half"]).verdict is Verdict.PASS


def test_too_little_evidence_is_insufficient_at_any_value(build, graded):
    few = judge(rules_of({**FLOOR, "min_boxes": 73}), graded["all"]).gates[0]
    assert (few.verdict, few.value) == (Verdict.INSUFFICIENT, 1.0)
    assert "72 boxes, the gate needs 73: about 1 more drive" in few.why
    many = judge(rules_of({**FLOOR, "min_drives": 13}), graded["all"]).gates[0]
    assert "12 drives, the gate needs 13: about 1 more drive" in many.why
    empty = judge(rules_of({**FLOOR, "slice": "vru"}), graded["all"]).gates[0]
    assert (empty.verdict, empty.n) == (Verdict.INSUFFICIENT, 0)


def test_boxes_of_one_drive_are_insufficient_evidence(build):
    frames = [build.frame(f"d{drive:02d}", index) for drive in range(12) for index in range(6)]
    box = (10.0, 10.0, 60.0, 60.0)
    alone = [frame for frame in frames if frame.drive == "d03"]
    dataset = build.dataset(frames, [build.label(frame, "car", box) for frame in alone])
    found = [build.prediction(frame, "car", box) for frame in alone]
    rules = rules_of(FLOOR)
    (gate,) = judge(rules, evaluate(Predictions(dataset, found), settings=rules.evaluation)).gates
    assert gate.verdict is Verdict.INSUFFICIENT
    assert "1 drive with such boxes" in gate.why


def test_fewer_than_ten_drives_are_insufficient(build):
    case = build.random(0, drives=9)
    rules = rules_of({**FLOOR, "bound": 0.0})
    (gate,) = judge(
        rules, evaluate(Predictions(case.dataset, case.predictions), settings=rules.evaluation)
    ).gates
    assert gate.verdict is Verdict.INSUFFICIENT
    assert gate.method.startswith("descriptive")


def test_only_required_gates_decide_but_all_are_reported(graded):
    advice = {**FLOOR, "name": "advice", "bound": 1.0, "required": False}
    judged = judge(rules_of(FLOOR, advice), graded["most"])
    assert judged.verdict is Verdict.PASS
    assert [gate.verdict for gate in judged.gates] == [Verdict.PASS, Verdict.FAIL]
    assert [gate.required for gate in judged.gates] == [True, False]


def test_one_failure_outweighs_insufficient_evidence():
    def result(verdict: Verdict) -> GateResult:
        return GateResult(
            name="x", verdict=verdict, n=1, unit="boxes", value=0.0, bound=0.0, method=""
        )

    passed, failed, unclear = map(result, (Verdict.PASS, Verdict.FAIL, Verdict.INSUFFICIENT))
    assert overall_verdict([passed, passed]) is Verdict.PASS
    assert overall_verdict([passed, unclear]) is Verdict.INSUFFICIENT
    assert overall_verdict([unclear, failed, passed]) is Verdict.FAIL


def test_metrics_with_other_settings_are_rejected(graded):
    other = GateRules.model_validate(
        {"schema_version": 1, "evaluation": {"resamples": 200}, "gates": [FLOOR]}
    )
    with pytest.raises(ParameterError, match=r"settings=rules\.evaluation"):
        judge(other, graded["all"])


def test_gate_on_an_unknown_class_is_an_error_and_on_an_absent_one_is_insufficient(graded):
    with pytest.raises(ParameterError, match="Did you mean 'truck'"):
        judge(rules_of({**FLOOR, "class": "truk"}), graded["all"])
    absent = judge(rules_of({**FLOOR, "slice": "occluded", "class": "truck"}), graded["all"])
    assert absent.verdict is Verdict.INSUFFICIENT


def test_report_has_all_metrics_and_is_reproducible(build, store):
    def report():
        frames = [build.frame(f"d{drive:02d}", index) for drive in range(10) for index in range(2)]
        box = (10.0, 10.0, 60.0, 60.0)
        labels = [build.label(frame, "car", box, origin=Origin.RENDERED) for frame in frames]
        rules = rules_of(FLOOR, INT8)
        dataset = build.dataset(frames, labels)
        found = [build.prediction(frame, "car", box) for frame in frames[:-3]]
        model = evaluate(Predictions(dataset, found), settings=rules.evaluation)
        judged = judge(rules, model, fp32=model)
        return judged, save_report(
            store,
            judged,
            candidate=make_ref("bundle", digest.of_bytes(b"b")),
            dataset=make_ref("dataset", digest.of_bytes(b"d")),
        )

    judged, ref = report()
    assert report()[1] == ref
    record = store.get(ref, GateReport)
    assert (record.verdict, record.gates) == (Verdict.PASS, judged.gates)
    assert record.simulated
    assert record.rules == judged.rules.digest
    content = json.loads(store.payload(ref, "metrics.json").read_bytes())
    assert set(content["models"]) == {"candidate", "fp32"}
    assert content["models"]["candidate"]["truth"] == {"rendered": 20}
    row = content["models"]["candidate"]["rows"][0]
    assert (row["slice"], row["tp"], row["fn"]) == ("all", 17, 3)
    assert row["recall"]["low"] < row["recall"]["value"] < row["recall"]["high"]


NO_LEAKS = {"name": "no-leaks", "kind": "no_leaks"}


def inspected(verdict: Verdict, why: str = "") -> Inspection:
    ground = {"unit": "frames", "bound": 0.0, "method": "no frame as alike"}
    leaks = 2.0 if verdict is Verdict.FAIL else 0.0
    return Inspection(
        dataset=make_ref("dataset", "a" * 64),
        model=None,
        verdict=verdict,
        gates=(
            GateResult(
                name="leakage-embedding", verdict=verdict, n=90, value=leaks, why=why, **ground
            ),
            GateResult(
                name="leakage-drive", verdict=Verdict.FAIL, n=3, value=3.0, required=False, **ground
            ),
        ),
        exact=0,
        near=0,
        thin=0,
        suspects=None,
        parameters={},
    )


def test_leak_fails_a_model_with_perfect_recall(graded):
    rules = rules_of(FLOOR, NO_LEAKS)
    clean = judge(rules, graded["all"], inspection=inspected(Verdict.PASS))
    assert clean.verdict is Verdict.PASS
    reason = "ab12 and cd34: 3 hash bits apart, safety of one and seed of two"
    leaking = judge(rules, graded["all"], inspection=inspected(Verdict.FAIL, reason))
    assert leaking.verdict is Verdict.FAIL
    gate = leaking.gates[1]
    assert (gate.value, gate.n, gate.unit) == (2.0, 90, "frames")
    assert reason in gate.why
    assert "leakage-drive" not in gate.why, "what is not required is not the reason"


def test_missing_inspection_is_insufficient_evidence(graded):
    judged = judge(rules_of(FLOOR, NO_LEAKS), graded["all"])
    assert judged.verdict is Verdict.INSUFFICIENT
    assert "not inspected" in judged.gates[1].why


def test_a_leak_is_drawn_beside_the_other_gates(graded):
    judged = judge(
        rules_of(FLOOR, NO_LEAKS), graded["all"], inspection=inspected(Verdict.FAIL, "ab12")
    )
    drawn = plots.gate_intervals(judged)
    assert any("no-leaks" in text.get_text() for axis in drawn.axes for text in axis.texts) or any(
        "no-leaks" in axis.get_title(loc="left") for axis in drawn.axes
    )
