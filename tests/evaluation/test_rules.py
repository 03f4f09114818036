"""A gates file says what it means, or is refused with the nearest word that would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from workbench.errors import ParameterError
from workbench.evaluation.rules import Floor, load_rules

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
        "no_leaks",
    }
    assert any(getattr(gate, "slice", "") == "vru" and gate.required for gate in rules.gates)


def test_what_is_not_said_has_the_documented_default(tmp_path):
    (gate,) = load_rules(written(tmp_path, GATE)).gates
    assert isinstance(gate, Floor)
    assert (gate.slice, gate.cls, gate.min_drives, gate.required) == ("all", "all", 10, True)


def test_the_digest_follows_the_meaning_and_not_the_spelling(tmp_path):
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
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message):
        load_rules(path)


def test_two_gates_of_one_name_are_refused(tmp_path):
    with pytest.raises(ParameterError, match="two gates are named 'ap50'"):
        load_rules(written(tmp_path, GATE, GATE))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParameterError, match=r"no such gates file .*nowhere\.yaml"):
        load_rules(tmp_path / "nowhere.yaml")
    with pytest.raises(ParameterError, match="cannot be read"):
        load_rules(tmp_path)
