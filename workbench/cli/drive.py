"""The vehicles of a test fleet: the rides they replay, and the process in which they drive."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from workbench.cli.common import progress_bar, resolve_ref
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.processes import die_with_parent
from workbench.core.workspace import Workspace
from workbench.data.telemetry import SIGNALS, count
from workbench.fleet.server import FleetFolder
from workbench.fleet.simulated import SimulatedFleet, drive
from workbench.fleet.vehicle import DayCounts, Vehicle
from workbench.monitoring.broker import Broker
from workbench.monitoring.mqtt import deliver
from workbench.monitoring.queue import VehicleQueue
from workbench.monitoring.rides import Ride, load_rides, queue_ride, rides_of_day, save_rides
from workbench.records.base import short_ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, condition_values

__all__ = ()

_REPLAYED_FRAMES = 300
_CONNECTIONS = 8
_DELIVERY_S = 5.0  # a vehicle's connection at the end of a day


class FleetTelemetry:
    """Queues what vehicles measured, and delivers it.

    Args:
        folder: Of the fleet.
        broker: Whether there is one; without it vehicles only queue.
        regressions: Ratio of the rate of fallbacks by version, where the driving is drawn.
    """

    def __init__(
        self, folder: Path, *, broker: bool, regressions: Mapping[int, float] | None = None
    ) -> None:
        self._regressions = dict(regressions or {})
        self._rides = folder / "telemetry" / "rides"
        self._broker = Broker(folder / "telemetry" / "broker") if broker else None
        self._loaded: dict[str, tuple[Ride, ...]] = {}

    def day(self, vehicle: Vehicle, day: int) -> DayCounts:
        """What a vehicle reports of a day: of its replayed rides what was measured, else drawn."""
        camera = vehicle.installed["front-camera"].component
        rides = rides_of_day(self._of_release(camera.release), vehicle.profile.id, day)
        if rides[0].evidence == "simulated":
            return drive(vehicle.profile.id, day, camera.version, self._regressions)
        found = [one for ride in rides for one in ride.sketches if not SIGNALS[one.signal].edges]
        total = Counter[tuple[str, str]]()
        for one in found:
            total[one.signal, one.cls] += one.sum
        frames = sum(one.n for one in found if one.signal == "frames.ok")
        return DayCounts(
            day=day,
            frames=frames,
            detections={
                cls: number for (name, cls), number in total.items() if name == "detections"
            },
            late=total["frames.late", ""],
            fallbacks=total["frames.fallback", ""],
            near_misses=total["near_misses", ""],
        )

    def drive(self, vehicle: Vehicle, counts: DayCounts) -> None:
        """Queue the bundles of one vehicle-day."""
        installed = {ecu: target.component for ecu, target in vehicle.installed.items()}
        camera, ecu = installed["front-camera"], vehicle.profile.ecus["front-camera"]
        identity: dict[str, object] = {
            "vehicle": vehicle.profile.id,
            "day": counts.day,
            "version": camera.version,
            "software": {name: str(one.version) for name, one in installed.items()},
            "hardware": ecu.hardware,
            "calibration": ecu.calibration,
            "region": vehicle.profile.region,
            "model_year": vehicle.profile.model_year,
        }
        rides = rides_of_day(self._of_release(camera.release), vehicle.profile.id, counts.day)
        queue = VehicleQueue(vehicle.folder / "telemetry.sqlite")
        try:
            for number, ride in enumerate(rides):
                own = _with_counts(ride, counts, number, len(rides))
                name = f"day {counts.day}, ride {number + 1}: {ride.ride}"
                queue_ride(queue, own, name=name, identity=identity)
        finally:
            queue.close()

    def deliver(self, vehicle: Vehicle) -> str:
        """Send what one vehicle has queued; returns what went wrong, or nothing."""
        if self._broker is None or not (vehicle.folder / "telemetry.sqlite").exists():
            return ""
        queue = VehicleQueue(vehicle.folder / "telemetry.sqlite")
        try:
            if len(queue):
                deliver(queue, self._broker.account(vehicle.profile.id), timeout_s=_DELIVERY_S)
        except WorkbenchError as error:
            return f"{vehicle.profile.id}: {error}"
        finally:
            queue.close()
        return ""

    def deliver_all(self, vehicles: Sequence[Vehicle], every: float) -> None:
        """Deliver again and again, for a thread of its own."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            while True:
                for line in filter(None, pool.map(self.deliver, vehicles)):
                    print(line, flush=True)
                time.sleep(every)

    def _of_release(self, release: str) -> tuple[Ride, ...]:
        """What the model of a release measured, else any model on the same frames."""
        name = release.rpartition("/")[2][:12]
        if name not in self._loaded:
            path = self._rides / f"{name}.json"
            self._loaded[name] = load_rides(path if path.exists() else self._rides / "default.json")
        return self._loaded[name]


def replay_rides(workspace: Workspace, folder: Path, wanted: str | None) -> str:
    """Measure the rides that vehicles replay, once for each dataset and bundle.

    Args:
        folder: Of the fleet.
        wanted: Reference of a dataset; None for the newest recorded one, ``none`` for no dataset.

    Returns:
        What the telemetry will be: replayed or simulated, and from what.

    Raises:
        ParameterError: The dataset was rendered, or there is no bundle to run on it.
    """
    from workbench.deployment.runtime import Runtime, load_bundle
    from workbench.deployment.session import frames_from_dataset
    from workbench.deployment.telemetry import measure_rides
    from workbench.records.catalog import newest_first
    from workbench.records.dataset import load_dataset
    from workbench.records.model_types import ExportBundle
    from workbench.records.store import Store
    from workbench.records.types import DatasetVersion

    store, file = Store(workspace), folder / "telemetry" / "rides" / "default.json"
    datasets = [ref for ref, record in newest_first(store, DatasetVersion) if not record.simulated]
    if wanted == "none":
        datasets = []
    elif wanted is not None:
        datasets = [ref for ref in datasets if ref == resolve_ref(workspace, wanted, ("dataset",))]
    bundles = [ref for ref, _ in newest_first(store, ExportBundle)]
    if not datasets or not bundles:
        if wanted not in {None, "none"}:
            lacking = "a bundle to run on it" if datasets else "recorded drives, not rendered ones"
            raise ParameterError(f"cannot replay {wanted}: needs {lacking}", where="--rides")
        file.unlink(missing_ok=True)
        return "simulated (drawn at random; no recorded dataset with a bundle)"
    files = {name: store.read_payload(bundles[0], name) for name in store.payload_names(bundles[0])}
    bundle = load_bundle(store.folder(bundles[0]) / "payload", files=files)
    said = f"replayed (recorded drives of {short_ref(datasets[0])}, {short_ref(bundles[0])})"
    known = load_rides(file)
    if known and (known[0].dataset, known[0].model) == (datasets[0], bundle.digest):
        return said
    dataset = load_dataset(store, datasets[0])
    chosen = _some_drives(dataset)
    frames = [one for one in frames_from_dataset(workspace, dataset) if one.sequence in chosen]
    with progress_bar("measure rides") as progress:
        measured = measure_rides(Runtime([bundle]), frames, progress=progress)
    rides = [
        Ride(
            ride=name, evidence="replayed", model=bundle.digest, dataset=datasets[0],
            conditions=_conditions(chosen[name]), sketches=sketches,
        )
        for name, sketches in measured.items()
    ]  # fmt: skip
    save_rides(file, rides)
    return said


def _some_drives(dataset: Dataset) -> dict[str, list[Frame]]:
    """Whole drives in a random order, as many as `_REPLAYED_FRAMES` allow."""
    drives: dict[str, list[Frame]] = {}
    for frame in dataset.frames:
        drives.setdefault(frame.drive, []).append(frame)
    names = sorted(drives)
    np.random.default_rng(0).shuffle(names)
    chosen, frames = {}, 0
    for name in names:
        if frames and frames + len(drives[name]) > _REPLAYED_FRAMES:
            break
        chosen[name] = drives[name]
        frames += len(drives[name])
    return chosen


def _conditions(frames: list[Frame]) -> dict[str, str]:
    """What is the same in all frames of a drive."""
    found = {}
    for name in ("light", "weather"):
        values = {value for frame in frames for value in condition_values(frame, name)}
        if len(values) == 1:
            found[name] = values.pop()
    return found


def _with_counts(ride: Ride, counts: DayCounts, number: int, rides: int) -> Ride:
    """A ride that was drawn at random, with its part of the day's late frames and fallbacks.

    What a replayed ride says was measured; nothing is drawn into it.
    """
    if ride.evidence != "simulated":
        return ride
    frames, late, fallbacks = (
        value * (number + 1) // rides - value * number // rides
        for value in (counts.frames, counts.late, counts.fallbacks)
    )
    late, fallbacks = min(late, frames), min(fallbacks, frames)
    own = [
        count("frames.late", late, frames),
        count("frames.fallback", fallbacks, frames),
        count("frames.ok", max(0, frames - late - fallbacks), frames),
    ]
    return ride.model_copy(update={"sketches": (*ride.sketches, *own)})


def main(arguments: list[str] | None = None) -> int:
    """Drive all vehicles of a fleet's folder until the parent ends."""
    parser = argparse.ArgumentParser(prog="python -m workbench.cli.drive")
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between polls")
    parser.add_argument("--regression", action="append", default=[], metavar="VERSION=RATIO")
    parser.add_argument("--broker", action="store_true", help="deliver telemetry")
    options = parser.parse_args(arguments)
    die_with_parent()
    regressions = {
        int(version): float(ratio)
        for version, _, ratio in (text.partition("=") for text in options.regression)
    }
    director = FleetFolder(options.folder).director()
    places = sorted(path for path in (options.folder / "vehicles").iterdir() if path.is_dir())
    telemetry = FleetTelemetry(options.folder, broker=options.broker, regressions=regressions)
    fleet = SimulatedFleet(places, options.url, on_day=telemetry.drive, driver=telemetry.day)
    if options.broker:
        # Beside the polls: a vehicle waits until its messages are settled.
        threading.Thread(
            target=telemetry.deliver_all, args=(fleet.vehicles, options.every), daemon=True
        ).start()
    reported = int(director.clock.day(director.clock.now()))
    while True:
        start = time.monotonic()
        refused = fleet.poll()
        clock = director.clock
        today = int(clock.day(clock.now()))
        for day in range(max(reported, today - 14), today):  # days that have ended
            refused += fleet.report(day)
        reported = today
        for line in refused:
            print(line, flush=True)
        time.sleep(max(0.0, options.every - (time.monotonic() - start)))


if __name__ == "__main__":
    sys.exit(main())
