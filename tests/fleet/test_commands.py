"""`workbench fleet` from the outside: a server process, simulated vehicles, a signed release."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.fleet.test_rollout import ROWS
from tests.release.conftest import METRICS, RULES
from workbench.cli import cli
from workbench.cli.fleet import _release
from workbench.core import digest
from workbench.core.types import Json
from workbench.core.workspace import HOME_VARIABLE
from workbench.monitoring.broker import mosquitto_path
from workbench.records.base import GateReport, GateResult, Ref, Verdict, make_ref, short_ref
from workbench.records.model_types import ExportBundle
from workbench.records.store import Store
from workbench.release.claims import add_claim, waive
from workbench.release.publishing import publish_release


@pytest.fixture
def home(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(store.workspace.root))
    return store.workspace.root


def publish(store: Store, verdict: Verdict = Verdict.PASS) -> Ref:
    """A signed release whose bundle has a target matrix."""
    dataset = make_ref("dataset", "d" * 64)
    record = ExportBundle(
        checkpoint=make_ref("checkpoint", "c" * 64),
        calibration=dataset,
        classes=("car",),
        parity={},
    )
    manifest = json.dumps({"targets": ROWS}).encode()
    bundle = store.put(record, {"model.onnx": verdict.encode() * 50, "manifest.json": manifest})
    gate = GateResult(
        name="map", verdict=verdict, n=10, unit="drives", value=0.5, bound=0.4, method="bootstrap"
    )
    report = GateReport(
        candidate=bundle, reference=None, dataset=dataset, verdict=verdict,
        rules=digest.of_json(RULES), gates=(gate,),
    )  # fmt: skip
    return publish_release(store, bundle, store.put(report, METRICS), "front-camera").ref


def run(*arguments: str, code: int = 0) -> Json:
    result = CliRunner().invoke(cli, ["fleet", *arguments, "--json"], catch_exceptions=True)
    if code:
        assert result.exit_code != 0 and result.exception is not None
        return {"error": str(result.exception)}
    assert result.exit_code == 0, (result.output, result.exception)
    found: Json = json.loads(result.stdout)
    return found


@pytest.fixture
def server(home: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "workbench", "fleet", "up", *options]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def wait_for(condition: Callable[[Json], bool], timeout_s: float = 240) -> Json:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            status = run("status")
            if condition(status):
                return status
        except AssertionError:
            status = {}  # not up yet
        assert time.monotonic() < deadline, json.dumps(status)[-3000:]
        time.sleep(0.5)


def telemetry(condition: Callable[[Json], bool], timeout_s: float = 60) -> Json:
    deadline = time.monotonic() + timeout_s
    while True:
        result = CliRunner().invoke(cli, ["monitor", "status", "--json"])
        found: Json = json.loads(result.stdout)["telemetry"] if result.exit_code == 0 else {}
        if found and condition(found):
            return found
        assert time.monotonic() < deadline, (found, result.exception)
        time.sleep(0.5)


def test_a_release_goes_out_and_comes_back(
    store: Store, home: Path, server: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    assert "no fleet here" in run("status", code=1)["error"]
    first = server("--vehicles", "12", "--speed", "2000")
    wait_for(lambda status: status["vehicles"] == 12)
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        yaml.safe_dump(
            {
                "schema_version": 1,
                "name": "camera",
                "components": [{"ecu": "front-camera", "release": publish(store)}],
                "stages": [
                    {"name": "lab", "where": {"site": "lab"}, "soak": "12h", "reporting": 0},
                    {"name": "full", "approval": ["kim"], "soak": "12h", "reporting": 0},
                ],
            }
        )
    )
    failed = publish(store, Verdict.FAIL)
    refused = run("rollout", str(plan), "--release", f"front-camera={failed}", code=1)
    assert "gates of this release say FAIL" in refused["error"]
    assert f"workbench waive {short_ref(failed)} GATE" in refused["error"]
    predicate = {"gate": "map", "verdict": "FAIL", "by": "kim", "reason": "fix in v2"}
    add_claim(store, failed, "waiver", {**predicate, "expires": "2020-01-01"}, by="kim")
    refused = run("rollout", str(plan), "--release", f"front-camera={failed}", code=1)
    assert "map waived by kim expired 2020-01-01" in refused["error"]
    waive(
        store, failed, "map", by="kim", reason="fix in v2",
        until=datetime.now(UTC).date() + timedelta(days=1),
    )  # fmt: skip
    _, (waiver,) = _release(store.workspace, failed)  # it may go out now
    assert (waiver.gate, waiver.by) == ("map", "kim")
    started = run("rollout", str(plan), "--by", "lee")
    assert started["evidence"] == "simulated"
    assert started["releases"]["front-camera"]["version"] == 1
    assert "is running" in run("rollout", str(plan), code=1)["error"]
    wait_for(lambda status: status["rollouts"][0]["state"] == "waiting")
    # A killed server forgets nothing; the offline keys are not needed from here on.
    first.kill()
    first.wait()
    (home / "fleet" / "offline-keys").rename(tmp_path / "safe")
    server("--speed", "2000")
    assert "waits for kim" in run("approve", "--by", "lee", code=1)["error"]
    assert run("approve", "--by", "kim")["stage"] == "full"
    assert run("pause")["state"] == "paused"
    assert run("resume")["state"] == "running"
    status = wait_for(lambda status: status["rollouts"][0]["state"] == "completed")
    sent = status["rollouts"][0]["running"]
    assert sent + status["rollouts"][0]["excluded"].get("untested-target", 0) == 12
    assert run("rollback", "--by", "kim") == {
        "rollout": "camera-1", "state": "rolled-back", "cannot": {},
    }  # fmt: skip
    status = wait_for(lambda status: status["rollouts"][0]["back"] == sent)
    assert status["versions"]["front-camera"] == {"0": 12}
    text = CliRunner().invoke(cli, ["fleet", "status"]).output
    assert "evidence: simulated" in text and f"{sent} went back" in text
    assert "cannot be read" in run("rollout", str(plan), code=1)["error"]
    if mosquitto_path() is not None:
        arrived = telemetry(lambda found: found["vehicles"] == 12)
        assert arrived["evidence"].keys() == {"simulated"} and not arrived["quarantine"]
        assert arrived["frames"] > 12 * 10_000 and arrived["dropped"] == 0
        text = CliRunner().invoke(cli, ["monitor", "status"]).output
        assert "of 12 vehicles" in text and "evidence: simulated" in text
