"""The page about the fleet lists every reason, and the plan of the repository is valid."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.fleet.plan import load_plan
from workbench.fleet.reasons import Reason
from workbench.fleet.simulated import SHADOW_ECU

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
