"""Hazards: what the table and the gates disagree on is found, and shown in the audit pack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.release.world import make_world
from workbench.cli import main
from workbench.core.errors import ParameterError
from workbench.records.base import GateReport
from workbench.records.store import Store
from workbench.release.hazards import Hazard, JudgedGate, check_hazards, read_hazards
from workbench.release.pack import _hazard_rows

GATES = (JudgedGate("vru", True, "vru"), JudgedGate("night", False, "night_vru"))


def hazard(**changes: object) -> Hazard:
    fields: dict[str, object] = {
        "id": "H1",
        "hazard": "missed",
        "situation": "town",
        "severity": 3,
        "exposure": 4,
        "controllability": 2,
        "asil": "C",
        "goal": "found",
        "slices": ("vru",),
        "gates": ("vru", "night"),
    }
    return Hazard.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, []),
        ({"gates": ()}, ["goal-without-gate", "gate-without-goal", "gate-without-goal"]),
        ({"gates": ("night",)}, ["goal-without-gate", "gate-without-goal"]),
        ({"gates": ("incidents", "night")}, ["goal-without-gate", "gate-without-goal"]),
        ({"gates": ("vru",)}, ["gate-without-goal"]),
        ({"gates": ("vru", "night", "speed")}, ["unknown-gate"]),
        ({"slices": ("vru", "night_vru")}, ["slice-without-gate"]),
        ({"asil": "B"}, ["asil-differs"]),
    ],
)
def test_what_does_not_fit_is_a_finding(changes: dict[str, object], kinds: list[str]):
    assert [found.kind for found in check_hazards([hazard(**changes)], GATES)] == kinds


def test_the_shipped_table_has_two_findings_with_the_shipped_gates(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit) as ended:
        main(["hazards", "check", "--json"])
    body = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert [(one["kind"], one["subject"]) for one in body["findings"]] == [
        ("goal-without-gate", "H2"),
        ("goal-without-gate", "H6"),
    ]
    assert {one["asil"] for one in body["hazards"]} == {"A", "B", "C"}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"asil": "E"}, "asil"), ({"sev": 1}, "sev"), ({"severity": 4}, "severity")],
)
def test_a_damaged_table_is_refused(tmp_path: Path, change: dict[str, object], words: str):
    path = tmp_path / "hazards.yaml"
    row = hazard().model_dump(mode="json") | change
    path.write_text(yaml.safe_dump({"schema_version": 1, "hazards": [row]}))
    with pytest.raises(ParameterError, match=words):
        read_hazards(path)


def test_the_audit_pack_shows_hazards_with_verdicts(store: Store):
    world = make_world(store)
    rows = _hazard_rows(world.store.get(world.gates, GateReport))
    text = "\n".join(" | ".join(map(str, row)) for row in rows)
    assert "vru-recall: PASS" in text and "critical-misses: not judged" in text
    assert "no required gate" in text
