"""The drill: from a regression in the field to a retrained model, hop by hop.

The first test runs everything but training and inference, which stand-ins replace; the second one
runs all of it on real rides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.drill.run import MODEL, Drill
from tests.fleet.test_rollout import ROWS
from tests.release.conftest import METRICS, RULES
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.data.telemetry import count, sketch
from workbench.monitoring.alarms import record_hop, require_status
from workbench.monitoring.rides import Ride, save_rides
from workbench.records.base import GateReport, GateResult, Ref, Verdict, digest_of, make_ref
from workbench.records.model_types import ExportBundle
from workbench.records.store import Store
from workbench.release.publishing import publish_release


class _StandIn(Drill):
    """A drill whose models are a few bytes; the candidate misses close objects at night."""

    def prepare(self) -> tuple[Ref, Ref, Ref]:
        first = self._release("first", Verdict.PASS)
        return first, make_ref("dataset", "d" * 64), make_ref("dataset", "e" * 64)

    def train_candidate(self, first: Ref, drill: Ref, day: Ref, said: Callable[[str], None]) -> Ref:
        self.bad = self._release("candidate", Verdict.FAIL)
        return self.bad

    def retrain(self, alarm: Ref, said: Callable[[str], None]) -> Ref:
        require_status(self.store, alarm, "open")
        record_hop(self.store, alarm, "accepted", by="ana", budget=24, parameters={})
        released = self._release("retrained", Verdict.PASS)
        record_hop(self.store, alarm, "retrained", by="ana", results=(released,), run="r1")
        return released

    def measure(self, release: Ref, dataset: Ref) -> list[Ride]:
        rng = np.random.default_rng(0)
        made = []
        for number in range(60):
            night = number % 2 == 0
            bad = night and release == getattr(self, "bad", None)
            confidence = np.clip(rng.normal(0.35 if bad else 0.6, 0.1, 40), 0, 1)
            made.append(
                Ride(
                    ride=f"ride-{number}", evidence="replayed", model=digest_of(release)[:12],
                    conditions={"light": "night" if night else "day"},
                    sketches=(
                        count("frames.ok", 20, 20),
                        sketch("confidence", confidence, cls="car"),
                        count("near_misses", int(rng.poisson(12 if bad else 2)), 20),
                    ),
                )
            )  # fmt: skip
        name = f"{digest_of(release)[:12]}.json"
        save_rides(self.folder.root / "telemetry" / "rides" / name, made)
        return made

    def _release(self, name: str, verdict: Verdict) -> Ref:
        dataset = make_ref("dataset", "d" * 64)
        record = ExportBundle(
            checkpoint=make_ref("checkpoint", "c" * 64), calibration=dataset, classes=("car",),
            parity={},
        )  # fmt: skip
        manifest = json.dumps({"targets": ROWS}).encode()
        bundle = self.store.put(record, {"model.onnx": name.encode(), "manifest.json": manifest})
        gate = GateResult(
            name="map", verdict=verdict, n=10, unit="drives", value=0.5,
            bound=0.4, method="bootstrap",
        )  # fmt: skip
        report = GateReport(
            candidate=bundle, reference=None, dataset=dataset, verdict=verdict,
            rules=digest.of_json(RULES), gates=(gate,),
        )  # fmt: skip
        return publish_release(self.store, bundle, self.store.put(report, METRICS), MODEL).ref


@pytest.mark.slow
def test_every_hop_with_stand_ins_for_training(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.monitoring.broker.mosquitto_path", lambda: None)
    drill = _StandIn(workspace.root, vehicles=28)
    result = drill.run()
    assert [one["hop"] for one in result["hops"]][2:4] == [
        "shadow sees it", "canary sees it, the stage stops, rollback",
    ]  # fmt: skip
    said = {one["hop"]: one["result"] for one in result["hops"]}
    assert "light=night" in said["shadow sees it"]
    assert "rolled-back at limited-fleet" in said["canary sees it, the stage stops, rollback"]
    assert "waived: map" in said["candidate without night frames"]
    assert result["rollout"] == "completed"
    assert set(result["versions"]) <= {0, 3}  # 0: chips that no release has a file for
    assert result["audit_log_whole"]
    store = Store(workspace)
    alarm = require_status(store, result["alarm"], "retrained")
    assert (alarm.alarm.what, alarm.alarm.slice) == ("disagreement", "light=night")
    assert alarm.alarm.model == result["releases"]["candidate"]
    (hops,) = drill.command("monitor", "kpis")["alarm_to_model"]
    names = [hop["name"] for hop in hops["hops"]]
    assert names[:3] == ["raised", "accepted", "retrained"]
    assert names[-1] == "rollout completed" and hops["hours"] >= 0


@pytest.mark.slow
def test_the_drill_on_real_rides(tmp_path: Path) -> None:
    base = os.environ.get("WORKBENCH_DRILL_BASE", "")
    if not (Path(base) / "releases" / MODEL).is_dir():
        pytest.skip("WORKBENCH_DRILL_BASE names no workspace with a finished run on real rides")
    command = [sys.executable, "-m", "tests.e2e.drill.run", "--base", base]
    done = subprocess.run([*command, "--home", str(tmp_path / "drill")], check=False)
    assert done.returncode == 0
    result = json.loads((tmp_path / "drill" / "drill.json").read_bytes())
    assert result["model_leads_to_alarm"] and result["alarm_leads_to_model"]
    assert result["seconds"] < 15 * 60
