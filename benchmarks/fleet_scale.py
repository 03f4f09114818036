"""What 1,000 vehicles with three ECUs cost the director: ``python -m benchmarks.fleet_scale``.

Everything is real but the driving: keys, signatures, disks, HTTP on loopback. Vehicles are threads
of one process that share the cores with the server, so a poll of all of them is an upper bound for
a server with a machine of its own. Signing and verifying are in CPU seconds, which other programs
do not disturb. The peer of the director's metadata is python-tuf signing the same three roles for
each vehicle without a database.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError

from benchmarks.common import Row, main, note, row, seconds
from workbench.core import digest
from workbench.fleet import rollout
from workbench.fleet.components import VehicleProfile
from workbench.fleet.director import Director
from workbench.fleet.metadata import DirectorSigners, director_metadata
from workbench.fleet.plan import Plan
from workbench.fleet.publishing import ReleaseFiles, publish_offers, publish_rollbacks
from workbench.fleet.server import FleetFolder, FleetServer
from workbench.fleet.simulated import SimulatedFleet, build_fleet
from workbench.fleet.vehicle import Vehicle
from workbench.fleet.verification import HttpFetcher
from workbench.records.base import make_ref

_ROWS = [
    {"chip": chip, "machine": engine, "runtime": ">0", "status": "verified", "file": "model.onnx"}
    for chip, engine in (
        ("NVIDIA Orin GPU", "tensorrt"),
        ("NVIDIA Thor GPU", "tensorrt"),
        ("NVIDIA Xavier GPU", "tensorrt"),
        ("x86-64 CPU", "onnxruntime"),
    )
]
_ECUS = ("front-camera", "planner", "cabin")


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` has 100 vehicles instead of 1,000."""
    count = 100 if quick else 1000
    with tempfile.TemporaryDirectory() as scratch:
        folder = FleetFolder(Path(scratch) / "fleet")
        folder.create(datetime.now(UTC))
        director = folder.director(serving=True)
        director.start_clock(1.0)
        note(f"building {count} vehicles")
        places = build_fleet(folder, count)
        server = FleetServer(folder).start()
        try:
            fleet = SimulatedFleet(places, server.url)
            return _measure(folder, director, fleet, count, server.url)
        finally:
            server.stop()


def _measure(
    folder: FleetFolder, director: Director, fleet: SimulatedFleet, count: int, url: str
) -> list[Row]:
    name = _start(folder, director)
    rollout.advance(director)
    profiles = [vehicle.profile for vehicle in fleet.vehicles]
    spent, peer = _metadata(folder, director, profiles)
    note(f"{count} vehicles install three components")
    installing = seconds(lambda: _refuse(fleet.poll()), repeat=1)
    idle = seconds(lambda: _refuse(fleet.poll()), repeat=1)
    begun = time.perf_counter()
    stuck = rollout.rollback(director, name, "benchmark")
    command = time.perf_counter() - begun
    note("everybody goes back")
    back = seconds(lambda: _refuse(fleet.poll()), repeat=1)
    returned = sum(
        all(target.component.version == 0 for target in vehicle.installed.values())
        for vehicle in fleet.vehicles
    )
    verify = 1000 * _verification(fleet, url)
    return [
        row(
            f"director metadata for {count:,} vehicles with 3 ECUs",
            spent,
            "CPU-s",
            peer=peer,
            peer_name="python-tuf without a database",
            goal="<= 0.5 CPU-s" if count == 1000 else "",
            met=spent <= 0.5 if count == 1000 else None,
        ),
        row("verification on a vehicle, without the network", verify, "CPU-ms", goal="<= 5 CPU-ms",
            met=verify <= 5),
        row(f"{count:,} vehicles install 3 components, one poll each", installing, "s"),
        row(f"{count:,} vehicles with nothing new, one poll each", idle, "s"),
        row("rollback: the command", command, "s"),
        row(f"rollback: {count:,} vehicles back after one poll each", returned, "vehicles",
            goal="all",
            met=returned == count and not stuck),
        row("rollback: that poll", back, "s", goal="<= 600 s, a poll interval", met=back <= 600),
    ]  # fmt: skip


def _start(folder: FleetFolder, director: Director) -> str:
    """A rollout of three components to everybody."""
    body = {
        "schema_version": 1,
        "name": "scale",
        "components": [{"ecu": ecu, "release": "given"} for ecu in _ECUS],
        "stages": [{"name": "full", "soak": "1d"}],
    }
    plan = Plan.model_validate(body)
    with director.connect() as connection:
        vehicles = list(director.vehicles(connection).values())
    now = director.clock.now()
    manifest = json.dumps({"targets": _ROWS}).encode()
    offers = [
        offer
        for component in plan.components
        for offer in publish_offers(
            folder,
            [one.profile for one in vehicles],
            component,
            ReleaseFiles(
                make_ref("release", digest.of_bytes(component.ecu.encode())),
                1,
                {"manifest.json": manifest, "model.onnx": component.ecu.encode() * 1000},
            ),
            now,
        )
    ]
    rollbacks = publish_rollbacks(folder, vehicles, _ECUS, now)
    return rollout.start(director, plan, offers, rollbacks, "benchmark")


def _metadata(
    folder: FleetFolder, director: Director, profiles: list[VehicleProfile]
) -> tuple[float, float]:
    """CPU seconds to sign for everybody: the director from its database, and python-tuf alone."""
    start = time.process_time()
    for profile in profiles:
        director.metadata_file(profile.id, "timestamp.json")
    spent = time.process_time() - start
    signers = DirectorSigners.load(folder.director_keys)
    with director.connect() as connection:
        known = director.targets(connection)
        assigned: dict[str, list[str]] = {}
        for one in connection.execute("SELECT vehicle, path FROM assignments"):
            assigned.setdefault(one["vehicle"], []).append(one["path"])
    now = director.clock.now()
    start = time.process_time()
    for profile in profiles:
        targets = [known[path] for path in assigned[profile.id]]
        director_metadata(profile, targets, 1, signers, now)
    return spent, time.process_time() - start


class _Recorded(HttpFetcher):
    """Answers of the server, remembered: what is left is what the vehicle does."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, bytes | DownloadHTTPError] = {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url not in self._seen:
            try:
                self._seen[url] = b"".join(super()._fetch(url))
            except DownloadHTTPError as error:  # there is no newer root
                self._seen[url] = error
        answer = self._seen[url]
        if isinstance(answer, DownloadHTTPError):
            raise answer
        return iter([answer])


def _verification(fleet: SimulatedFleet, url: str) -> float:
    """Median CPU seconds of checking both repositories on a vehicle, without the network."""
    spent = []
    for vehicle in fleet.vehicles[:100]:
        fetcher = _Recorded()
        again = Vehicle(vehicle.folder, url, fetcher=fetcher)
        now = again._client.attest_time(None).now
        again._client.check(now, again.installed)
        start = time.thread_time()
        again._client.check(now, again.installed)
        spent.append(time.thread_time() - start)
    return sorted(spent)[len(spent) // 2]


def _refuse(refused: list[str]) -> None:
    if refused:
        raise RuntimeError(f"{len(refused)} vehicles refused: {refused[0]}")


if __name__ == "__main__":
    main(measure)
