"""Stages, gates and rollback over real messages of simulated vehicles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.notebooks import EXPLORE, run_cells
from workbench.audit import log as audit
from workbench.core.errors import ParameterError
from workbench.core.types import Json
from workbench.core.workspace import HOME_VARIABLE, Workspace
from workbench.fleet import rollout
from workbench.fleet.components import VehicleProfile
from workbench.fleet.director import Director
from workbench.fleet.plan import Plan, load_plan
from workbench.fleet.publishing import ReleaseFiles, publish_offers, publish_rollbacks
from workbench.fleet.server import FleetFolder, FleetServer
from workbench.fleet.simulated import SimulatedFleet, build_fleet
from workbench.records.base import make_ref

ROWS = [
    {
        "chip": f"NVIDIA {chip} GPU",
        "machine": "tensorrt",
        "runtime": runtime,
        "status": status,
        "file": "model.onnx",
    }
    for chip, runtime, status in (
        ("Orin", ">=10,<11", "linted"),
        ("Thor", ">=10,<12", "linted"),
        ("Xavier", ">=8.5,<9", "untested"),
    )
] + [
    {
        "chip": "x86-64 CPU",
        "machine": "onnxruntime",
        "runtime": ">=1.23,<2",
        "status": "verified",
        "file": "model.onnx",
    }
]


def release(version: int, text: str = "") -> ReleaseFiles:
    content = {
        "manifest.json": json.dumps({"targets": ROWS}).encode(),
        "model.onnx": f"model {version} {text}".encode(),
    }
    return ReleaseFiles(make_ref("release", f"{version:064}"), version, content)


@dataclass
class Fleet:
    folder: FleetFolder
    server: FleetServer
    simulated: SimulatedFleet
    places: list[Path]

    @property
    def director(self) -> Director:
        return self.server.director

    def start(self, plan: Plan, version: int = 1) -> str:
        with self.director.connect() as connection:
            vehicles = list(self.director.vehicles(connection).values())
        now = self.director.clock.now()
        offers = [
            offer
            for component in plan.components
            for offer in publish_offers(
                self.folder,
                [vehicle.profile for vehicle in vehicles],
                component,
                release(version, component.ecu),
                now,
            )
        ]
        ecus = [component.ecu for component in plan.components]
        rollbacks = publish_rollbacks(self.folder, vehicles, ecus, now)
        return rollout.start(self.director, plan, offers, rollbacks, "tester")

    def pass_time(self, passed: timedelta) -> None:
        with self.director.connect() as connection:
            row = connection.execute("SELECT value FROM settings WHERE name = 'clock'").fetchone()
            start, real_start, speed = json.loads(row["value"])
            value = json.dumps([start, real_start - passed.total_seconds() / speed, speed])
            connection.execute("UPDATE settings SET value = ? WHERE name = 'clock'", (value,))
        self.folder.images.refresh(self.director.clock.now())

    def day(self, *, silent: Callable[[VehicleProfile], bool] = lambda _one: False) -> None:
        """A day passes: everybody polls, reports what was, and the rollout goes on."""
        clock = self.director.clock
        day = int(clock.day(clock.now()))
        everyone = self.simulated.vehicles
        self.simulated.poll()
        self.pass_time(timedelta(days=1))
        self.simulated.vehicles = [one for one in everyone if not silent(one.profile)]
        self.simulated.poll()
        assert self.simulated.report(day) == []
        self.simulated.vehicles = everyone
        rollout.advance(self.director)

    def status(self) -> Json:
        found: Json = rollout.fleet_status(self.director)["rollouts"][-1]
        return found

    def camera_versions(self) -> set[int]:
        return {one.installed["front-camera"].component.version for one in self.simulated.vehicles}


@pytest.fixture
def make_fleet(tmp_path: Path) -> Callable[..., Fleet]:
    servers = []

    def make(count: int, **options: object) -> Fleet:
        folder = FleetFolder(tmp_path / "fleet", Workspace(tmp_path))
        folder.create(datetime.now(UTC))
        folder.director().start_clock(1.0)
        places = build_fleet(folder, count)
        server = FleetServer(folder).start()
        servers.append(server)
        return Fleet(folder, server, SimulatedFleet(places, server.url, **options), places)

    yield make  # type: ignore[misc]
    for server in servers:
        server.stop()


def plan(*stages: Json, **values: object) -> Plan:
    components = values.pop("components", [{"ecu": "front-camera", "release": "given"}])
    body = {"schema_version": 1, "name": "camera", "components": components, "stages": stages}
    return Plan.model_validate({**body, **values})


ROAD = {"site": "road"}
JUDGE = {"metrics": ["late", "fallbacks"], "looks": 3, "permutations": 400}


def test_stages_follow_each_other_with_an_approval_between(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(12)
    stages = [
        {"name": "lab", "where": {"site": "lab"}},
        {"name": "track", "where": {"site": "track"}, "approval": ["kim"]},
        {"name": "full", "where": ROAD},
    ]
    name = fleet.start(plan(*stages))
    rollout.advance(fleet.director)
    assert fleet.status()["stage"] == "lab"
    rollout.advance(fleet.director)  # nobody has installed it: a stage is not passed by silence
    assert fleet.status()["state"] == "paused" and "0 of 2" in fleet.status()["why"]
    fleet.simulated.poll()
    rollout.resume(fleet.director, name, "tester")
    assert fleet.status()["state"] == "waiting"
    with pytest.raises(ParameterError, match="waits for kim, not for tester"):
        rollout.approve(fleet.director, name, "tester")
    for _ in range(3):
        rollout.advance(fleet.director)
    assert fleet.status()["stage"] == "track"
    rollout.approve(fleet.director, name, "kim")
    assert fleet.status()["state"] == "running"
    fleet.simulated.poll()
    rollout.advance(fleet.director)
    assert fleet.status()["stage"] == "full"
    fleet.simulated.poll()
    rollout.advance(fleet.director)
    done = fleet.status()
    assert done["state"] == "completed" and done["stage"] is None
    events = [(one["event"], one["by"]) for one in done["events"]]
    assert ("approved", "kim") in events and ("resumed", "tester") in events
    logged = list(audit.read_log(Workspace(fleet.folder.root.parent)))
    assert [(one.detail["action"], one.by) for one in logged] == events


def test_an_incompatible_vehicle_is_told_why_and_never_sent(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(30)
    component = {"ecu": "front-camera", "release": "given", "model_year": ">=2024"}
    fleet.start(plan({"name": "full"}, components=[component]))
    rollout.advance(fleet.director)
    kinds: dict[str, set[str]] = {"untested-target": set(), "incompatible-model-year": set()}
    for vehicle in fleet.simulated.vehicles:
        if vehicle.profile.model_year < 2024:
            kinds["incompatible-model-year"].add(vehicle.profile.id)
        elif "Xavier" in vehicle.profile.ecus["front-camera"].hardware:
            kinds["untested-target"].add(vehicle.profile.id)  # never run nor linted on it
    assert all(kinds.values())
    assert fleet.status()["excluded"] == {reason: len(ids) for reason, ids in kinds.items()}
    with fleet.director.connect() as connection:
        sent = {row["vehicle"] for row in connection.execute("SELECT vehicle FROM assignments")}
        notices = dict(connection.execute("SELECT id, notice FROM vehicles").fetchall())
    for reason, ids in kinds.items():
        assert not ids & sent
        assert all(json.loads(notices[name])["reason"] == reason for name in ids)
    assert len(sent) == 30 - sum(map(len, kinds.values()))
    xavier = next(
        one for one in fleet.simulated.vehicles if one.profile.id in kinds["untested-target"]
    )
    assert xavier.update() is False
    assert xavier.notice["reason"] == "untested-target" and "Xavier" in xavier.notice["message"]


def test_a_canary_that_is_worse_is_rolled_back_by_itself(
    make_fleet: Callable[..., Fleet],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fleet = make_fleet(60, regressions={1: 8.0})
    stage = {
        "name": "limited", "where": ROAD, "size": "12", "soak": "3d", "judge": JUDGE,
        "on_failure": "rollback",
    }  # fmt: skip
    fleet.start(plan(stage, {"name": "full"}))
    rollout.advance(fleet.director)
    for _ in range(4):
        fleet.day()
        if fleet.status()["state"] == "rolled-back":
            break
    stopped = fleet.status()
    assert stopped["state"] == "rolled-back" and "fallbacks" in stopped["why"]
    assert stopped["judgement"]["outcome"] == "failed"
    assert fleet.camera_versions() == {0, 1}
    fleet.simulated.poll()  # one poll interval
    assert fleet.camera_versions() == {0}
    assert fleet.status()["back"] == 12 and fleet.status()["running"] == 0
    # Back on the old bytes with a higher release counter than the bad one had.
    counters = {one.installed["front-camera"].component.counter for one in fleet.simulated.vehicles}
    assert max(counters) > 1
    monkeypatch.setenv(HOME_VARIABLE, str(fleet.folder.root.parent))
    names = run_cells(EXPLORE / "why_canary_stopped.ipynb")
    judgement = stopped["judgement"]
    assert names["answer"].p_value == judgement["p_value"]  # type: ignore[attr-defined]
    assert names["answer"].why == judgement["why"]  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    assert "camera-1, stage limited: rolled-back" in said and "without vehicle-" in said


def test_silent_canaries_hold_a_stage(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(40)
    stage = {"name": "limited", "where": ROAD, "size": "all", "soak": "1d"}
    name = fleet.start(plan(stage))
    rollout.advance(fleet.director)
    quiet = {one.profile.id for one in fleet.simulated.vehicles[7:14]}
    fleet.day(silent=lambda one: one.id in quiet)
    held = fleet.status()
    assert held["state"] == "paused" and "silent" in held["why"]
    rollout.resume(fleet.director, name, "kim")
    last = [one for one in fleet.status()["events"] if one["event"] == "resumed"]
    assert "accepted without evidence" in last[0]["detail"] and last[0]["by"] == "kim"
    assert fleet.status()["state"] == "completed"


def test_vehicles_that_fall_back_stop_a_stage(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(14)
    for vehicle in fleet.simulated.vehicles[7:9]:
        vehicle._self_check = lambda _slot, one: "no boxes" if one.version == 1 else None
    name = fleet.start(plan({"name": "full", "where": ROAD, "soak": "1d", "on_failure": "abort"}))
    rollout.advance(fleet.director)
    fleet.simulated.poll()
    rollout.advance(fleet.director)
    assert fleet.status()["state"] == "aborted" and "fell back" in fleet.status()["why"]
    assert fleet.simulated.poll() == []  # nothing is offered any more
    with pytest.raises(ParameterError, match="aborted"):
        rollout.pause(fleet.director, name, "kim")
    again = fleet.start(plan({"name": "full", "where": ROAD}), version=1)
    rollout.advance(fleet.director)
    assert fleet.status()["excluded"].get("fell-back-before") == 2
    rollout.abort(fleet.director, again, "kim")


def test_a_paused_rollout_offers_nothing(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(10)
    name = fleet.start(plan({"name": "full", "soak": "1d"}))
    rollout.advance(fleet.director)
    rollout.pause(fleet.director, name, "kim")
    fleet.simulated.poll()
    assert fleet.camera_versions() == {0}
    rollout.advance(fleet.director)
    assert fleet.status()["state"] == "paused"
    with pytest.raises(ParameterError, match="is paused"):
        fleet.start(plan({"name": "full"}), version=2)
    rollout.resume(fleet.director, name, "kim")
    fleet.simulated.poll()
    assert fleet.camera_versions() >= {1}


def test_canaries_are_drawn_and_cannot_choose_themselves(make_fleet: Callable[..., Fleet]) -> None:
    """A vehicle that installs the release on its own is no canary, whatever it reports."""
    fleet = make_fleet(60)
    stage = {"name": "limited", "where": ROAD, "size": "12", "soak": "3d", "judge": JUDGE}
    fleet.start(plan(stage))
    rollout.advance(fleet.director)
    with fleet.director.connect() as connection:
        rows = connection.execute("SELECT vehicle, canary FROM members").fetchall()
        drawn = {row["vehicle"] for row in rows if row["canary"]}
        path = connection.execute("SELECT path FROM assignments").fetchone()["path"]
        volunteer = next(row["vehicle"] for row in rows if not row["canary"])
        installed = json.dumps({"front-camera": path})
        connection.execute("UPDATE vehicles SET installed = ? WHERE id = ?", (installed, volunteer))
        data = rollout._Run(
            fleet.director, connection, connection.execute("SELECT * FROM rollouts").fetchone()
        ).members(canary=True)
    assert set(data) == drawn and volunteer not in drawn
    # Another rollout of the same plan draws others: the order hangs on a secret, not on names.
    rollout.abort(fleet.director, "camera-1", "tester")
    fleet.start(plan(stage), version=2)
    rollout.advance(fleet.director)
    with fleet.director.connect() as connection:
        second = {
            row["vehicle"]
            for row in connection.execute(
                "SELECT vehicle FROM members WHERE rollout = 'camera-2' AND canary = 1"
            )
        }
    assert second != drawn


def test_rolling_one_component_back_takes_along_what_requires_it(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(10)
    components = [
        {"ecu": "front-camera", "release": "given"},
        {"ecu": "planner", "release": "given", "requires": {"front-camera": ">=1"}},
        {"ecu": "cabin", "release": "given"},
    ]
    name = fleet.start(plan({"name": "full"}, components=components))
    rollout.advance(fleet.director)
    fleet.simulated.poll()
    assert rollout.rollback(fleet.director, name, "kim", ["cabin"]) == {}
    fleet.simulated.poll()
    one = next(one for one in fleet.simulated.vehicles if "Orin" in str(one.profile.ecus))
    versions = {ecu: target.component.version for ecu, target in one.installed.items()}
    rolled_out = {name: versions[name] for name in ("front-camera", "planner", "cabin")}
    assert rolled_out == {"front-camera": 1, "planner": 1, "cabin": 0}
    assert rollout.rollback(fleet.director, name, "kim", ["front-camera"]) == {}
    fleet.simulated.poll()
    assert {target.component.version for target in one.installed.values()} == {0}
    with pytest.raises(ParameterError, match="no component brakes"):
        rollout.rollback(fleet.director, name, "kim", ["brakes"])


def test_a_plan_names_its_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    good = {
        "schema_version": 1, "name": "x", "components": [{"ecu": "cabin", "release": "r"}],
        "stages": [{"name": "full", "soak": "1d"}],
    }  # fmt: skip
    for change, message in (
        ({"stages": [{"name": "full", "soak": "soon"}]}, "a duration is a number"),
        ({"stages": [{"name": "full", "size": "some"}]}, "stages.0.size"),
        ({"stages": [{"name": "full", "wher": {}}]}, "stages.0.wher"),
        ({"stages": [{"name": "full", "where": {"colour": "red"}}]}, "colour"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "each stage once"),
        ({"stages": [{"name": "a", "soak": "1d", "judge": {"metrics": ["speed"]}}]}, "no metric"),
        ({"stages": [{"name": "a", "soak": "1d", "judge": JUDGE}]}, "a day for each look"),
        ({"components": [{"ecu": "cabin", "release": "r", "requires": {"a": "new"}}]}, "new"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(ParameterError, match=message):
            load_plan(file)
    file.write_text(json.dumps(good))
    read = load_plan(file)
    assert Plan.model_validate_json(read.model_dump_json()) == read
