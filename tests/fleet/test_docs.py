"""The page about the fleet lists every reason, and the plan of the repository is valid."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.fleet.plan import load_plan
from workbench.fleet.reasons import Reason
from workbench.fleet.simulated import SHADOW_ECU
from workbench.monitoring import envelope
from workbench.monitoring.campaigns import NotSent
from workbench.monitoring.ingest import QuarantineReason

ROOT = Path(__file__).resolve().parents[2]


def test_every_reason_is_explained_once() -> None:
    page = (ROOT / "docs" / "how-to" / "fleet.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", page, re.M) == [reason.value for reason in Reason]


def test_the_plans_of_the_repository_are_valid() -> None:
    shadow = load_plan(ROOT / "pipelines" / "shadow.yaml")
    assert [one.ecu for one in shadow.components] == [SHADOW_ECU]
    plan = load_plan(ROOT / "pipelines" / "rollout.yaml")
    assert [stage.name for stage in plan.stages] == [
        "lab", "simulation", "closed-track", "limited-fleet", "full-fleet",
    ]  # fmt: skip
    judged = next(stage for stage in plan.stages if stage.judge)
    assert judged.size == "20" and judged.control == "200"


def test_every_attack_is_carried_out_by_a_test_and_has_a_known_code() -> None:
    page = (ROOT / "docs" / "reference" / "attacks.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| `([a-z-]+)` \| `([^`]+)::(\w+)` \|$", page, re.M)
    assert len({attack for attack, *_ in rows}) == len(rows) >= 60
    codes = {*Reason, *QuarantineReason, *envelope.Reason, *NotSent, "survived"}
    for attack, code, file, test in rows:
        text = (ROOT / "tests" / file).read_text()
        assert f"def {test}(" in text, attack
        names = {code, code.upper().replace("-", "_")}
        # A test may go through all of a table's codes.
        assert code == "survived" or any(name in text for name in names), (attack, code)
        assert code in codes, attack
