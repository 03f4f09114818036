"""A query goes out signed, vehicles answer it within their rules, and `ingest` reads the frames."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from tests.monitoring.test_docs import ROOT
from workbench.cli import cli
from workbench.cli.drive import FleetTelemetry
from workbench.core.errors import ParameterError
from workbench.core.types import Json
from workbench.core.workspace import HOME_VARIABLE, Workspace
from workbench.data.telemetry import count
from workbench.fleet.reasons import Reason, UpdateRefused
from workbench.fleet.server import FleetFolder, FleetServer
from workbench.fleet.simulated import SHADOW_ECU, SimulatedFleet, build_fleet
from workbench.fleet.vehicle import DayCounts, Vehicle
from workbench.monitoring.campaigns import (
    MAX_BYTES_A_DAY,
    CampaignFile,
    NotSent,
    VehicleCampaigns,
    campaigns_file,
    load_campaign,
)
from workbench.monitoring.ingest import Ingest
from workbench.monitoring.queue import VehicleQueue
from workbench.monitoring.rides import Ride, RideBox, RideFrame, save_rides
from workbench.monitoring.store import TelemetryStore
from workbench.records.base import make_ref
from workbench.records.dataset import load_dataset
from workbench.records.store import Store

REF = make_ref("campaign", "c" * 64)
QUERY: Json = {
    "schema_version": 1,
    "name": "night-riders",
    "query": {"conditions": {"light": "night"}, "classes": ["cyclist"], "score": [0.1, 0.5]},
    "budget": {"days": 14, "bytes_a_vehicle": 100_000, "frames_a_drive": 2},
}


def ride(
    folder: Path, name: str, light: str = "night", score: float = 0.3, redaction: str = "deface"
) -> Ride:
    """A ride of three frames with a cyclist."""
    frames = []
    for number in range(3):
        pixels = np.random.default_rng(sum(map(ord, name)) + number).integers(0, 255, (32, 48, 3))
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG")
        path = folder / f"{name}-{number}.jpg"
        path.write_bytes(stream.getvalue())
        box = RideBox(cls="cyclist", score=score, xyxy=(1, 1, 9, 9))
        frames.append(
            RideFrame(
                path=path, file=path.name, frame=f"{name}-{number}", redaction=redaction,
                boxes=(box,),
            )
        )  # fmt: skip
    return Ride(
        ride=name, evidence="replayed", model="m1", conditions={"light": light},
        sketches=(count("frames.ok", 3, 3),), frames=tuple(frames),
    )  # fmt: skip


def vehicle(
    folder: Path, *, day: int = 0, region: str = "eu", **changed: object
) -> VehicleCampaigns:
    made = CampaignFile.model_validate(QUERY).record(today=day, by="ana")
    content = campaigns_file({REF: made.model_copy(update=changed)})
    return VehicleCampaigns(folder, "vehicle-0001", region, content)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[VehicleQueue]:
    queue = VehicleQueue(tmp_path / "telemetry.sqlite")
    yield queue
    queue.close()


def test_a_vehicle_sends_what_matches_and_nothing_twice(
    tmp_path: Path, queue: VehicleQueue
) -> None:
    rides = [("r1", ride(tmp_path, "r1")), ("r2", ride(tmp_path, "r2", light="day"))]
    assert vehicle(tmp_path).collect(rides, 0, queue) == 2
    head = queue.pending()[0].body.partition(b"\n")[0]
    said = json.loads(head)
    assert (said["campaign"], said["drive"], said["vehicle"]) == (REF, "r1", "vehicle-0001")
    assert not {"position", "timestamp_us"} & said.keys()
    again = vehicle(tmp_path)  # after a restart
    assert again.collect(rides, 1, queue) == 0
    assert again.not_sent[NotSent.SENT_BEFORE] == 2


@pytest.mark.parametrize(
    ("reason", "given", "changed"),
    [
        (NotSent.CAMPAIGN_OVER, {}, {"days": (1, 2)}),
        (NotSent.OTHER_REGION, {}, {"regions": ("us",)}),
        (NotSent.NOT_DRAWN, {}, {"share": 1e-9}),
        (NotSent.NO_MATCH, {"light": "day"}, {}),
        (NotSent.NO_MATCH, {"score": 0.9}, {}),
        (NotSent.NO_VECTOR, {}, {"vector": (1.0, 0.0), "similarity": 0.5}),
        (NotSent.NOT_REDACTED, {"redaction": "none"}, {}),
        (NotSent.DRIVE_SPENT, {}, {"frames_a_drive": 1}),
        (NotSent.BYTES_SPENT, {}, {"bytes_a_vehicle": 100}),
    ],
)
def test_what_is_not_sent_says_why(
    tmp_path: Path, queue: VehicleQueue, reason: NotSent, given: Json, changed: Json
) -> None:
    car = vehicle(tmp_path, **changed)
    sent = car.collect([("r1", ride(tmp_path, "r1", **given))], 0, queue)
    assert sent == (1 if reason is NotSent.DRIVE_SPENT else 0) == len(queue)
    assert car.not_sent[reason] >= 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"campaigns": {"campaign/x": {"name": 1}}}'])
def test_a_campaign_from_the_future_or_none_at_all_sends_nothing(
    tmp_path: Path, queue: VehicleQueue, content: bytes
) -> None:
    car = VehicleCampaigns(tmp_path, "vehicle-0001", "eu", content)
    assert car.collect([("r1", ride(tmp_path, "r1"))], 0, queue) == 0
    assert car.not_sent == {NotSent.CAMPAIGN_UNREADABLE: 1}


def test_an_exemplar_finds_frames_like_it_and_a_nan_none(
    tmp_path: Path, queue: VehicleQueue
) -> None:
    known = {"r1-0": [1.0, 0.0], "r1-1": [0.0, 1.0], "r1-2": [np.nan, 0.0]}
    car = vehicle(tmp_path, vector=(1.0, 0.0), similarity=0.9)
    rides = [("r1", ride(tmp_path, "r1"))]
    assert car.collect(rides, 0, queue, lambda name: np.array(known[name], np.float32)) == 1
    assert car.not_sent[NotSent.NO_MATCH] == 2


def test_a_vehicle_has_a_limit_of_its_own_over_all_campaigns(
    tmp_path: Path, queue: VehicleQueue
) -> None:
    sent = {"all campaigns": {"day 0": MAX_BYTES_A_DAY - 10}}
    (tmp_path / "campaigns-sent.json").write_text(json.dumps(sent))
    rides = [("r1", ride(tmp_path, "r1"))]
    assert vehicle(tmp_path).collect(rides, 0, queue) == 0
    assert vehicle(tmp_path).collect(rides, 1, queue) == 2  # a new day


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"query": {}}, "asks for nothing"),
        ({"query": {"conditions": {"light": "dark"}}}, "no light 'dark'"),
        ({"query": {"conditions": {"position": "52.5"}}}, "no condition 'position'"),
        ({"query": {"conditions": {"light": "night"}, "score": [0.1, 0.2]}}, "score needs classes"),
        ({"budget": {"days": 400, "bytes_a_vehicle": 1}}, "less than or equal to 90"),
        ({"budget": {"days": 1}}, "required"),
        ({"privacy": {"redact": False}}, "not permitted"),
    ],
)
def test_an_impossible_campaign_names_its_key(tmp_path: Path, change: Json, what: str) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump(QUERY | change))
    with pytest.raises(ParameterError, match=what):
        load_campaign(path)


def test_the_campaign_of_the_repository_is_valid() -> None:
    assert load_campaign(ROOT / "pipelines" / "campaign.yaml").privacy.redacted


def test_every_reason_is_explained_once() -> None:
    page = (ROOT / "docs" / "how-to" / "monitoring.md").read_text()
    assert [one for one in NotSent if page.count(f"`{one}`") != 1] == []


def test_a_vehicle_with_a_candidate_reports_its_rides_twice_and_sends_frames_back(
    tmp_path: Path, queue: VehicleQueue
) -> None:
    champion = ride(tmp_path, "r1", score=0.9)
    blind = [one.model_copy(update={"boxes": ()}) for one in champion.frames]
    candidate = champion.model_copy(update={"model": "m2", "frames": tuple(blind)})
    save_rides(tmp_path / "telemetry" / "rides" / f"{'9' * 12}.json", [candidate])
    component = SimpleNamespace(version=2, release=make_ref("release", "9" * 64))
    installed = {
        "front-camera": SimpleNamespace(component=SimpleNamespace(version=1, release="release/0")),
        SHADOW_ECU: SimpleNamespace(component=component),
    }
    profile = SimpleNamespace(
        id="vehicle-0001", region="eu", model_year=2026,
        ecus={"front-camera": SimpleNamespace(hardware="orin", calibration="")},
    )  # fmt: skip
    save_rides(tmp_path / "telemetry" / "rides" / "default.json", [champion])
    car = SimpleNamespace(installed=installed, profile=profile, folder=tmp_path)
    FleetTelemetry(tmp_path, broker=False).drive(car, DayCounts(day=4, frames=9))  # type: ignore[arg-type]
    bundles = [json.loads(one.body) for one in queue.pending() if one.kind == "bundle"]
    assert [one["model"] for one in bundles] == ["m1"] * 3 + ["shadow/m2"] * 3
    assert bundles[0]["ride"] == bundles[3]["ride"] and bundles[3]["version"] == 1
    frames = [
        json.loads(one.body.partition(b"\n")[0]) for one in queue.pending() if one.kind == "frame"
    ]
    assert {(one["arm"], one["conditions"]["light"]) for one in frames} == {
        ("disagreement", "night")
    }
    assert sum(one["bytes"] for one in frames) <= 128 << 10


def edit_on_disk(one: Vehicle) -> None:
    """Whoever edits a campaign on a vehicle's disk is refused."""
    for file in one.folder.glob("slots/campaigns/*/release/campaigns.json"):
        file.write_bytes(b'{"campaigns": {"mine": {}}}')
    with pytest.raises(UpdateRefused) as refused:
        one.read_installed("campaigns")
    assert refused.value.reason is Reason.WRONG_CONTENT


def deliver_frames(fleet: SimulatedFleet, store: TelemetryStore) -> int:
    """Give what vehicles have queued to the ingest service; returns the number of frames."""
    ingest = Ingest(store, lambda: 0)
    for one in fleet.vehicles:
        queue = VehicleQueue(one.folder / "telemetry.sqlite")
        for message in queue.pending():
            topic = f"telemetry/{one.profile.id}/{message.kind}/{message.sequence}"
            ingest.accept(topic, message.body)
        queue.close()
    ingest.flush()
    assert not store.quarantine()
    return ingest.counts["frames"]


def test_from_the_command_to_a_dataset_and_back_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(workspace.root))
    folder = FleetFolder(workspace.root / "fleet", workspace)
    folder.create(datetime.now(UTC))
    folder.director().start_clock(1.0)
    places = build_fleet(folder, 3)
    rides = [ride(tmp_path, f"r{number}") for number in range(4)]
    rides.append(ride(tmp_path, "rx", redaction="none"))
    save_rides(folder.root / "telemetry" / "rides" / "default.json", rides)
    plan = tmp_path / "campaign.yaml"
    plan.write_text(yaml.safe_dump(QUERY))

    def run(*arguments: str) -> Json:
        result = CliRunner().invoke(cli, [*arguments, "--json"])
        assert result.exit_code == 0, (result.output, result.exception)
        found: Json = json.loads(result.stdout)
        return found

    tried = run("monitor", "campaign", "start", str(plan), "--dry-run")
    assert tried["tried"] == {"frames": 15, "matching": 12, "not_sent": {"not-redacted": 3}}
    started = run("monitor", "campaign", "start", str(plan), "--by", "ana")
    twice = CliRunner().invoke(cli, ["monitor", "campaign", "start", str(plan)])
    assert "campaign night-riders is running" in str(twice.exception)
    server = FleetServer(folder).start()
    try:
        telemetry = FleetTelemetry(folder.root, broker=False)
        fleet = SimulatedFleet(places, server.url, on_day=telemetry.drive, driver=telemetry.day)
        assert fleet.poll() == fleet.report(0) == []
        store = TelemetryStore(str(workspace.root / "telemetry"))
        arrived = deliver_frames(fleet, store)
        (row,) = run("monitor", "campaign", "list")["campaigns"]
        assert row["campaign"] == started["campaign"] and row["state"] == "running"
        assert row["frames"] == arrived > 0
        assert {one["drive"].endswith("rx") for one in store.frame_notes()} == {False}
        read = run(
            "ingest", str(workspace.root / "telemetry" / "frames"), "--name", "riders",
            "--no-roles",
        )  # fmt: skip
        # Vehicles of a small fleet replay the same drives: a frame is kept once.
        assert read["format"] == "returned" and read["quarantined"].keys() <= {"duplicate"}
        made = load_dataset(Store(workspace), read["ref"])
        assert {frame.events for frame in made.frames} == {("campaign:night-riders",)}
        assert {drive.vehicle for drive in made.drives} <= {
            one.profile.id for one in fleet.vehicles
        }
        run("monitor", "campaign", "stop", "night-riders", "--by", "ana")
        assert run("monitor", "campaign", "list")["campaigns"][0]["state"] == "ended"
        nothing = CliRunner().invoke(cli, ["fleet", "rollback"])  # takes back software, not queries
        assert "0 rollouts going on" in str(nothing.exception)
        fleet.poll()
        last = [one.read_installed("campaigns") for one in fleet.vehicles]
        assert last == [campaigns_file({})] * 3
        edit_on_disk(fleet.vehicles[0])
        assert {one.installed[SHADOW_ECU].component.version for one in fleet.vehicles} == {0}
    finally:
        server.stop()
