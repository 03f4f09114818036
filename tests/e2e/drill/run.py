"""The drill: a regression that nobody planted, from the vehicle to a new model: ``make drill``.

A candidate is trained without night frames of real rides; its gates are waived, signed. The shadow
and the canary see it, the stage stops, the fleet goes back. The alarm's query mines frames, known
boxes are drawn by replayed labelers, the model in the field is retrained, judged, and rolled out.

Vehicles are real in all but the road: keys, disks, metadata, messages, MQTT broker, table. The road
is replayed: frames of real rides, of which each vehicle has its own. A close object that the model
misses and the rides' own labels know stands for what another sensor of the vehicle would have seen.
Vehicles answer with the INT8 file for CPUs, whatever chip their profile names.

Needs a workspace with a finished run on real rides: ``make run DATA=… FORMAT=coco``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from workbench.cli import cli
from workbench.cli.drive import FleetTelemetry, measure_rides_of
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.data.telemetry import TelemetryBundle
from workbench.deployment.runtime import Answer
from workbench.detection.boxes import iou_matrix
from workbench.fleet import rollout
from workbench.fleet.server import FleetFolder, FleetServer
from workbench.fleet.simulated import SHADOW_ECU, SimulatedFleet, build_fleet
from workbench.fleet.vehicle import Vehicle
from workbench.monitoring.queue import VehicleQueue
from workbench.monitoring.rides import Ride, save_rides
from workbench.monitoring.store import TelemetryStore
from workbench.records.base import Ref, digest_of, short_ref
from workbench.records.dataset import Dataset, load_dataset, save_dataset
from workbench.records.model_types import ExportBundle, Release
from workbench.records.references import register_dataset, resolve_reference
from workbench.records.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PIPELINES = ROOT / "pipelines"
MODEL = "front-camera-bdd"
_CLOSE = 0.08  # height of a close object, in the image's height
_SEEN_IOU = 0.4
_ROAD_USERS = {"car", "truck", "bus", "pedestrian", "cyclist", "motorcycle"}


@dataclass
class Drill:
    """One drill in a copy of a workspace.

    Attributes:
        hops: Name, seconds since the failure mode was found, and what came out, in order.
    """

    home: Path
    vehicles: int = 200
    steps: int = 150
    budget: int = 24
    safety: int = 160
    fleet_frames: int = 300
    hops: list[tuple[str, float, str]] = field(default_factory=list)
    found_at: float | None = None

    def __post_init__(self) -> None:
        self.workspace = Workspace(self.home)
        self.store = Store(self.workspace)
        self.folder = FleetFolder(self.home / "fleet", self.workspace)
        self.environment = {"WORKBENCH_HOME": str(self.home)}

    def command(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> Json:
        """A real command; its JSON answer."""
        result = CliRunner().invoke(cli, [*arguments, "--json"], env=self.environment)
        if result.exit_code not in codes:
            what = f"workbench {' '.join(arguments)}: {result.output[-2000:]}"
            raise RuntimeError(f"{what}{result.exception}") from result.exception
        answer: Json = json.loads(result.stdout.splitlines()[-1])
        return answer

    @contextmanager
    def hop(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a hop, and print it with what came out."""
        said: list[str] = []
        print(f"… {name}", flush=True)
        began = time.monotonic()
        yield said.append
        since = time.monotonic() - (self.found_at or began)
        self.hops.append((name, since, "; ".join(said)))
        seconds = time.monotonic() - began
        print(f"✓ {name}: {seconds:.0f} s. {'; '.join(said)}", flush=True)

    # -- what is there before

    def datasets(self) -> tuple[Ref, Ref]:
        """A smaller version of the rides for the drill, and one without night to train on."""
        whole = load_dataset(self.store, resolve_reference(self.workspace, "bdd@2", ("dataset",)))
        rng = np.random.default_rng(0)
        known = [frame for frame in whole.frames if str(frame.conditions.light) != "unknown"]
        chosen = {frame.id for frame in whole.frames if frame.role in {"seed", "train", "val"}}
        for role, wanted in (("safety", self.safety), ("pool", self.fleet_frames)):
            frames = [frame.id for frame in known if frame.role == role]
            chosen |= set(rng.permutation(frames)[:wanted].tolist())
        drill = whole.where(lambda frame: frame.id in chosen)
        assert whole.ref is not None
        ref = self._save(drill, "drill", whole.ref)
        day = drill.where(
            lambda frame: (
                frame.role not in {"seed", "train"}
                or str(frame.conditions.light) in {"day", "dusk"}
            )
        )
        return ref, self._save(day, "drill-day", ref)

    def _save(self, dataset: Dataset, name: str, parent: Ref) -> Ref:
        from dataclasses import replace

        ref = save_dataset(
            self.store, replace(dataset, name=name), made_by="subset", parents=[parent]
        )
        register_dataset(self.workspace, ref)
        return ref

    # -- the road

    def measure(self, release: Ref, dataset: Ref) -> list[Ride]:
        """What a release answers on the rides of the fleet; written where vehicles find it."""
        bundle = self.store.get(release, Release).bundle
        pool = load_dataset(self.store, dataset).role("pool")
        truth = self._close_objects(pool)
        made = measure_rides_of(
            self.workspace, replace(pool, ref=dataset), bundle, digest_of(release)[:12],
            missed=lambda answer: _missed(truth.get(answer.frame or "", ()), answer),
        )  # fmt: skip
        save_rides(
            self.folder.root / "telemetry" / "rides" / f"{digest_of(release)[:12]}.json", made
        )
        return made

    def _close_objects(self, pool: Dataset) -> dict[str, list[tuple[float, ...]]]:
        answers = load_dataset(
            self.store, resolve_reference(self.workspace, "bdd-answers@1", ("dataset",))
        )
        heights = {frame.id: frame.height for frame in pool.frames}
        found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
        for label in answers.labels:
            height = heights.get(label.frame)
            if height and label.cls in _ROAD_USERS and label.box.h > _CLOSE * height:
                found[label.frame].append(label.box.xyxy)
        return found

    # -- the fleet

    def start_fleet(self, stack: list[Callable[[], object]]) -> SimulatedFleet:
        """Vehicles, server, and where mosquitto is installed a broker and the ingest service."""
        from workbench.monitoring.broker import Broker, mosquitto_path

        self.folder.create(datetime.now(UTC))
        director = self.folder.director()
        director.start_clock(1.0)
        places = build_fleet(self.folder, self.vehicles)
        self.server = FleetServer(self.folder).start()
        stack.append(self.server.stop)
        self.broker = mosquitto_path() is not None
        if self.broker:
            mosquitto = Broker(self.folder.root / "telemetry" / "broker")
            mosquitto.add_accounts([place.name for place in places])
            mosquitto.start()
            stack.append(mosquitto.stop)
            ingest = subprocess.Popen(
                [sys.executable, "-m", "workbench", "fleet", "ingest"],
                env={**os.environ, **self.environment},
                cwd=ROOT,
            )
            stack.append(ingest.wait)
            stack.append(ingest.terminate)
        self.telemetry = FleetTelemetry(self.folder.root, broker=self.broker)
        self.fleet = SimulatedFleet(
            places, self.server.url, on_day=self.telemetry.drive, driver=self.telemetry.day
        )
        return self.fleet

    def day(self, rides: bool = True) -> None:
        """Every vehicle polls, drives, reports and delivers; the rollout goes on."""
        director = self.server.director
        today = int(director.clock.day(director.clock.now()))
        refused = self.fleet.poll()
        director.advance_clock(timedelta(days=1))
        self.folder.images.refresh(director.clock.now())
        refused += self.fleet.poll()
        if rides:
            refused += self.fleet.report(today)
            with ThreadPoolExecutor(2) as pool:
                refused += filter(None, pool.map(self.telemetry.deliver, self.fleet.vehicles))
        rollout.advance(director)
        for line in refused[:5]:
            print("  ", line, flush=True)

    def versions(self) -> dict[int, int]:
        """Number of vehicles by version of the front camera's software."""
        found: dict[int, int] = defaultdict(int)
        for vehicle in self.fleet.vehicles:
            found[vehicle.installed["front-camera"].component.version] += 1
        return dict(found)

    def rollout_state(self) -> Json:
        """The last rollout, from the real command."""
        state: Json = self.command("fleet", "status")["rollouts"][-1]
        return state

    # -- the drill

    def run(self) -> Json:
        """All of it; returns what `main` prints as JSON."""
        stack: list[Callable[[], object]] = []
        try:
            return self._run(stack)
        finally:
            for stop in reversed(stack):
                stop()
            CliRunner().invoke(cli, ["down"], env=self.environment)

    def _run(self, stack: list[Callable[[], object]]) -> Json:
        first, drill, day = self.prepare()
        with self.hop("fleet with the release in the field") as said:
            self.waive(first)
            self.start_fleet(stack)
            self.measure(first, drill)
            self.roll_out(first, HERE / "everyone.yaml")
            self.day(rides=False)
            said(f"vehicles by version: {self.versions()}")
        with self.hop("candidate without night frames") as said:
            candidate = self.train_candidate(first, drill, day, said)
            said(f"waived: {', '.join(self.waive(candidate)) or 'nothing'}")
        self.found_at = time.monotonic()
        with self.hop("shadow sees it") as said:
            alarm = self.shadow(first, candidate, drill, said)
        with self.hop("canary sees it, the stage stops, rollback") as said:
            self.canary(candidate, said)
        with self.hop("mined, labelled, retrained, judged") as said:
            retrained = self.retrain(alarm, said)
            said(f"waived: {', '.join(self.waive(retrained)) or 'nothing'}")
        with self.hop("rolled out to all") as said:
            self.measure(retrained, drill)
            self.roll_out(retrained, HERE / "rollout.yaml")
            state = self.follow()
            said(f"rollout {state['state']} {state['why']}, versions: {self.versions()}")
        return self.summary(candidate, alarm, retrained, state)

    def prepare(self) -> tuple[Ref, Ref, Ref]:
        """The release in the field, the drill's dataset, and the one without night."""
        first = resolve_reference(self.workspace, f"models:/{MODEL}/1", ("release",))
        return first, *self.datasets()

    def train_candidate(self, first: Ref, drill: Ref, day: Ref, said: Callable[[str], None]) -> Ref:
        """A pipeline run that trains, exports, judges and releases without night frames."""
        start = self.store.get(self.store.get(first, Release).bundle, ExportBundle).checkpoint
        run = self.command(
            "run", str(PIPELINES / "drill_candidate.yaml"), "-p", f"train={day}",
            "-p", f"dataset={drill}", "-p", f"baseline={start}", "-p", f"model={MODEL}", "-p",
            f"training_steps={self.steps}", codes=(0, 3),
        )  # fmt: skip
        said(f"{short_ref(run['outputs']['release.release'])}, gates {self.verdicts(run)}")
        released: Ref = run["outputs"]["release.release"]
        return released

    def retrain(self, alarm: Ref, said: Callable[[str], None]) -> Ref:
        """What the signed envelope lets the alarm set off."""
        self.command("monitor", "envelope", str(PIPELINES / "drill_retraining.yaml"), "--by", "ana")
        run = self.command(
            "monitor", "alarms", "accept", alarm, "--by", "ana", "-p", f"budget={self.budget}",
            "-p", f"training_steps={self.steps}", codes=(0, 3),
        )  # fmt: skip
        report = json.loads((self.home / "runs" / run["run"] / "report.json").read_bytes())
        said(f"{short_ref(run['release'])}, gates {self.verdicts(report)}")
        released: Ref = run["release"]
        return released

    def shadow(self, first: Ref, candidate: Ref, drill: Ref, said: Callable[[str], None]) -> Ref:
        """All vehicles run the candidate beside the champion for two days."""
        champion, shadow = digest_of(first)[:12], digest_of(candidate)[:12]
        self.measure(candidate, drill)
        self.roll_out(candidate, HERE / "shadow.yaml", ecu=SHADOW_ECU)
        for _ in range(2):
            self.day()
        self._collect_telemetry()
        table = TelemetryStore(str(self.home / "telemetry"))
        found = self.command(
            "monitor", "drift", "--models", f"{shadow},{champion}", "--release", candidate,
            "--raise",
        )  # fmt: skip
        rows = found["drifted"]
        said(
            f"{table.count_frames()} frames came back; "
            + ", ".join(
                f"{row['signal']} in {row['slice']} {row['reference']:.3g} to {row['current']:.3g}"
                for row in rows[:3]
            )
        )
        alarms: list[Ref] = found["raised"]["alarms"]
        night = [
            ref for ref in alarms
            if self.command("monitor", "alarms", "show", ref)["alarm"]["slice"] == "light=night"
        ]  # fmt: skip
        said(f"alarms: {', '.join(map(short_ref, alarms)) or 'none'}")
        return (night or alarms)[0]

    def canary(self, candidate: Ref, said: Callable[[str], None]) -> None:
        """Some vehicles get the candidate; the judge, or else a person, sends them back."""
        self.roll_out(candidate, HERE / "rollout.yaml")
        state = self.follow()
        judged = state["judgement"] or {}
        said(f"{state['state']} at {state['stage']}: {state['why']}")
        if judged:
            metric = judged["metrics"][0]
            said(f"{metric['name']} {metric['canary']} against {metric['baseline']} a frame")
        if state["state"] != "rolled-back":
            self.command("fleet", "rollback", state["id"], "--by", "ana")
            said("a person rolls back")
        self.fleet.poll()
        said(f"vehicles by version: {self.versions()}")

    def follow(self, days: int = 6) -> Json:
        """Days pass until the rollout has ended or is held."""
        for _ in range(days):
            self.day()
            state = self.rollout_state()
            if state["state"] not in {"running", "waiting"}:
                break
        return state

    def roll_out(self, release: Ref, plan: Path, *, ecu: str = "front-camera") -> None:
        """`workbench fleet rollout`."""
        self.command("fleet", "rollout", str(plan), "--release", f"{ecu}={release}", "--by", "ana")
        rollout.advance(self.server.director)

    def waive(self, release: Ref) -> list[str]:
        """Waive, signed, each required gate that did not pass; their names."""
        from workbench.records.base import GateReport, Verdict

        record = self.store.get(release, Release)
        gates = self.store.get(record.gates, GateReport).gates
        names = [one.name for one in gates if one.required and one.verdict is not Verdict.PASS]
        until = (datetime.now(UTC) + timedelta(days=7)).date().isoformat()
        for name in names:
            self.command(
                "waive", release, name, "--reason", "drill on replayed rides", "--until",
                until, "--by", "ana",
            )  # fmt: skip
        return names

    def summary(self, candidate: Ref, alarm: Ref, retrained: Ref, state: Json) -> Json:
        """What has to be true at the end, and the hops."""
        log = self.command("audit", "verify")
        lineage = json.dumps(self.command("lineage", retrained))
        forward = json.dumps(self.command("lineage", alarm, "--forward"))
        return {
            "vehicles": self.vehicles,
            "versions": self.versions(),
            "rollout": state["state"],
            "releases": {"candidate": candidate, "retrained": retrained},
            "alarm": alarm,
            "audit_log_whole": log["ok"],
            "model_leads_to_alarm": alarm in lineage,
            "alarm_leads_to_model": retrained in forward,
            "alarm_leads_to_candidate": candidate in json.dumps(self.command("lineage", alarm)),
            "hops": [
                {"hop": name, "seconds": round(since, 1), "result": said}
                for name, since, said in self.hops
            ],
        }

    def verdicts(self, report: Json) -> str:
        """Gates of a run in a few words."""
        return ", ".join(f"{one['name']} {one['verdict']}" for one in report["gates"])

    def _collect_telemetry(self) -> None:
        """Until vehicles have delivered everything, or a minute has passed.

        Without mosquitto the queues are read from the vehicles' disks.
        """
        if not self.broker:
            for vehicle in self.fleet.vehicles:
                queue = VehicleQueue(vehicle.folder / "telemetry.sqlite")
                waiting = queue.pending(limit=10_000)
                bundles = [
                    TelemetryBundle.model_validate_json(one.body)
                    for one in waiting
                    if one.kind == "bundle"
                ]
                TelemetryStore(str(self.home / "telemetry")).write(bundles)
                queue.settle(one.sequence for one in waiting)
                queue.close()
            return
        for _ in range(60):
            with ThreadPoolExecutor(2) as pool:
                left = list(filter(None, pool.map(self.telemetry.deliver, self.fleet.vehicles)))
            unsent = sum(map(_waiting, self.fleet.vehicles))
            if not unsent and not left:
                return
            time.sleep(1)
        print(f"   {unsent} messages still wait in vehicles", *left[:3], flush=True)


def _waiting(vehicle: Vehicle) -> int:
    """Messages in a vehicle's queue."""
    queue = VehicleQueue(vehicle.folder / "telemetry.sqlite")
    try:
        return len(queue)
    finally:
        queue.close()


def _missed(objects: list[tuple[float, ...]] | tuple[()], answer: Answer) -> int:
    """Close objects without a box."""
    if not objects:
        return 0
    if not answer.boxes:
        return len(objects)
    boxes = np.array([box.xyxy for box in answer.boxes])
    overlap = iou_matrix(np.array(objects), boxes)
    return int((overlap.max(axis=1) < _SEEN_IOU).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path(os.environ.get("WORKBENCH_HOME", "")))
    parser.add_argument("--home", type=Path, help="copy of the workspace; by default beside it")
    parser.add_argument("--vehicles", type=int, default=200)
    parser.add_argument("--steps", type=int, default=150, help="of each training")
    parser.add_argument("--budget", type=int, default=24, help="frames to label")
    parser.add_argument("--safety", type=int, default=160, help="frames that judge")
    options = parser.parse_args()
    home = options.home or options.base.with_name(options.base.name + "-drill")
    if not (options.base / "releases" / MODEL).is_dir():
        print(f"no release {MODEL} in {options.base}: run `make run DATA=… FORMAT=coco` first")
        return 2
    shutil.rmtree(home, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.pid", "*.sock", "fleet", "telemetry", "workspace.lock")
    shutil.copytree(options.base, home, symlinks=True, ignore=ignored)
    began = time.monotonic()
    drill = Drill(home, options.vehicles, options.steps, options.budget, options.safety)
    result = drill.run()
    result["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(result, indent=1))
    (home / "drill.json").write_text(json.dumps(result, indent=1))
    everyone = result["audit_log_whole"] and result["model_leads_to_alarm"]
    return 0 if everyone else 1


if __name__ == "__main__":
    sys.exit(main())
