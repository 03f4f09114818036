"""The vehicles of a test fleet: the rides they replay, and the process in which they drive."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.cli.common import progress_bar, resolve_ref
from workbench.core import digest
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.processes import die_with_parent
from workbench.core.workspace import Workspace, find_workspace
from workbench.data.telemetry import SHADOW, SIGNALS, count
from workbench.deployment.runtime import Answer, AnswerBox, AnswerStatus
from workbench.deployment.session import InputFrame
from workbench.deployment.shadow import ShadowPair
from workbench.deployment.shadow_session import FrameSample
from workbench.fleet.server import FleetFolder
from workbench.fleet.simulated import CAMPAIGNS_ECU, SHADOW_ECU, SimulatedFleet, drive
from workbench.fleet.vehicle import DayCounts, Vehicle
from workbench.monitoring.broker import Broker
from workbench.monitoring.campaigns import VehicleCampaigns
from workbench.monitoring.mqtt import deliver
from workbench.monitoring.queue import VehicleQueue
from workbench.monitoring.rides import (
    Ride,
    RideBox,
    RideFrame,
    load_rides,
    queue_frame,
    queue_ride,
    rides_of_day,
    save_rides,
)
from workbench.records.base import Ref, digest_of, short_ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Role, condition_values

__all__ = ()

_REPLAYED_FRAMES = 300
_CONNECTIONS = 8
_SHADOW_BYTES_A_DAY = 128 << 10  # of frames that a vehicle sends back for a candidate
_LEAST_SCORE = 0.05  # of boxes that a vehicle keeps
_DELIVERY_S = 5.0  # a vehicle's connection at the end of a day


class FleetTelemetry:
    """Queues what vehicles measured, and the frames that they were asked for, and delivers it.

    Args:
        folder: Of the fleet.
        broker: Whether there is one; without it vehicles only queue.
        regressions: Ratio of the rate of fallbacks by version, where the driving is drawn.
        workspace: With the frames of replayed rides, for campaigns with an exemplar.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker: bool,
        regressions: Mapping[int, float] | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self._regressions = dict(regressions or {})
        self._vectors = RideVectors(workspace) if workspace is not None else None
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
        named = [
            (f"day {counts.day}, ride {number + 1}: {ride.ride}", ride)
            for number, ride in enumerate(rides)
        ]
        queue = VehicleQueue(vehicle.folder / "telemetry.sqlite")
        try:
            for number, (name, ride) in enumerate(named):
                own = _with_counts(ride, counts, number, len(rides))
                queue_ride(queue, own, name=name, identity=identity)
            self._shadow(vehicle, counts.day, named, queue, identity)
            self._campaigns(vehicle, counts.day, named, queue)
        finally:
            queue.close()

    def _shadow(
        self,
        vehicle: Vehicle,
        day: int,
        named: list[tuple[str, Ride]],
        queue: VehicleQueue,
        identity: dict[str, object],
    ) -> None:
        """Queue the same rides as the candidate in the shadow answers them, and some frames.

        Nothing of it reaches the vehicle's own counts.
        """
        installed = vehicle.installed.get(SHADOW_ECU)
        if installed is None or not installed.component.version:
            return
        release = installed.component.release.rpartition("/")[2][:12]
        measured = {one.ride: one for one in self._load(release)}
        seed = int(digest.of_bytes(f"{vehicle.profile.id} {day}".encode())[:12], 16)
        sample = FrameSample(_SHADOW_BYTES_A_DAY, seed=seed)
        for name, ride in named:
            candidate = measured.get(ride.ride)
            if candidate is None:
                continue  # the candidate had no time for it
            own = candidate.model_copy(update={"model": f"{SHADOW}{candidate.model}"})
            queue_ride(queue, own, name=name, identity=identity)
            others = {frame.frame: frame for frame in candidate.frames}
            for frame in ride.frames:
                if frame.frame in others:
                    pair = ShadowPair(_answer(name, frame), _answer(name, others[frame.frame]))
                    source = InputFrame(frame.path, frame.file, name, frame.frame)
                    sample.offer(pair, source)
        for about, image in sample.kept():
            ride = dict(named)[about["drive"]]
            about |= {"shadow": release, "day": day, "bytes": len(image)}
            about |= {"conditions": ride.conditions, "evidence": ride.evidence}
            queue_frame(queue, vehicle.profile.id, about, image)

    def _campaigns(
        self, vehicle: Vehicle, day: int, named: list[tuple[str, Ride]], queue: VehicleQueue
    ) -> None:
        installed = vehicle.installed.get(CAMPAIGNS_ECU)
        if installed is None or not installed.component.version:
            return
        campaigns = VehicleCampaigns(
            vehicle.folder,
            vehicle.profile.id,
            vehicle.profile.region,
            vehicle.read_installed(CAMPAIGNS_ECU),
        )
        if self._vectors is None:
            campaigns.collect(named, day, queue)
        else:
            self._vectors.prepare(ride for _, ride in named)
            campaigns.collect(named, day, queue, self._vectors.of)

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
        return self._load(release.rpartition("/")[2][:12]) or self._load("default")

    def _load(self, name: str) -> tuple[Ride, ...]:
        path = self._rides / f"{name}.json"
        if name not in self._loaded and path.exists():
            self._loaded[name] = load_rides(path)
        return self._loaded.get(name, ())


class RideVectors:
    """Unit vectors of the frames of replayed rides, by the encoder that mining uses."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: dict[str, NDArray[np.float32]] = {}
        self._datasets: dict[str, dict[str, Frame]] = {}

    def prepare(self, rides: Iterable[Ride]) -> None:
        """Embed the frames of rides that are new."""
        from workbench.records.dataset import load_dataset
        from workbench.records.store import Store

        missing = []
        for ride in rides:
            if ride.dataset and ride.dataset not in self._datasets:
                frames = load_dataset(Store(self._workspace), ride.dataset).frames
                self._datasets[ride.dataset] = {frame.id: frame for frame in frames}
            known = self._datasets.get(ride.dataset, {})
            names = (one.frame for one in ride.frames if one.frame not in self._known)
            missing += [known[name] for name in dict.fromkeys(names) if name in known]
        if missing:
            self._known |= frame_vectors(self._workspace, missing)[0]

    def of(self, frame: str) -> NDArray[np.float32] | None:
        """The vector of a frame."""
        return self._known.get(frame)


def frame_vectors(
    workspace: Workspace, frames: Sequence[Frame]
) -> tuple[dict[str, NDArray[np.float32]], str]:
    """Unit vectors of frames by their digest, and the digest of the encoder."""
    from workbench.curation.embedding.compute import embed
    from workbench.curation.embedding.lite0 import Lite0Encoder

    unique = list({frame.id: frame for frame in frames}.values())
    found = embed(workspace, Lite0Encoder(workspace=workspace), unique)
    vectors = found.vectors.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return dict(zip(found.frames, vectors, strict=True)), found.model


def _answer(sequence: str, frame: RideFrame) -> Answer:
    boxes = tuple(AnswerBox.model_validate(box.model_dump()) for box in frame.boxes)
    return Answer(
        file=frame.file, sequence=sequence, status=AnswerStatus.OK, boxes=boxes, by="model",
        frame=frame.frame,
    )  # fmt: skip


def measure_rides_of(
    workspace: Workspace,
    dataset: Dataset,
    bundle: Ref,
    name: str,
    *,
    missed: Callable[[Answer], int] | None = None,
) -> list[Ride]:
    """What the model of a bundle answers and measures on the drives of a dataset.

    Args:
        name: Of the model in telemetry.
        missed: Near misses of an answer, where other sensors know them; by default those that the
            model's own boxes show.
    """
    from workbench.deployment.runtime import Runtime, load_bundle
    from workbench.deployment.session import frames_from_dataset
    from workbench.deployment.telemetry import measure_rides
    from workbench.records.store import Store

    store = Store(workspace)
    files = {part: store.read_payload(bundle, part) for part in store.payload_names(bundle)}
    opened = load_bundle(store.folder(bundle) / "payload", files=files)
    runtime = Runtime([opened], score=0.0)  # drift shows in boxes that are not acted on, too
    sources = frames_from_dataset(workspace, dataset)
    paths = {source.frame: source.path for source in sources}
    frames = {frame.id: frame for frame in dataset.frames}
    drives: dict[str, list[Frame]] = {}
    for frame in dataset.frames:
        drives.setdefault(frame.drive, []).append(frame)
    seen: dict[str, list[RideFrame]] = {drive: [] for drive in drives}
    near: Counter[str] = Counter()

    def watch(answer: Answer) -> None:
        if answer.frame is None or answer.status is not AnswerStatus.OK:
            return
        near[answer.sequence] += missed(answer) if missed else 0
        boxes = [box for box in answer.boxes if box.score >= _LEAST_SCORE]
        seen[answer.sequence].append(
            RideFrame(
                path=paths[answer.frame],
                file=answer.file,
                frame=answer.frame,
                redaction=frames[answer.frame].redaction,
                boxes=tuple(RideBox.model_validate(box.model_dump()) for box in boxes),
            )
        )

    with progress_bar("measure rides") as progress:
        measured = measure_rides(runtime, sources, watch=watch, progress=progress)
    rides = []
    for ride, sketches in measured.items():
        own = [one for one in sketches if missed is None or one.signal != "near_misses"]
        if missed is not None:
            own.append(count("near_misses", near[ride], len(seen[ride])))
        rides.append(
            Ride(
                ride=ride, evidence="replayed", model=name, dataset=dataset.ref or "",
                conditions=_conditions(drives[ride]), sketches=tuple(own),
                frames=tuple(seen[ride]),
            )
        )  # fmt: skip
    return rides


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
    from workbench.records.catalog import newest_first
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
    name = digest_of(bundles[0])[:12]
    known = load_rides(file)
    measured = known and (known[0].dataset, known[0].model) == (datasets[0], name)
    if not measured or not any(ride.frames for ride in known):
        save_rides(file, _measure_some(workspace, datasets[0], bundles[0], name))
    return f"replayed (recorded drives of {short_ref(datasets[0])}, {short_ref(bundles[0])})"


def replay_release(workspace: Workspace, folder: Path, release: Ref) -> None:
    """Measure the rides that vehicles replay as the model of a release answers them.

    Nothing is done where vehicles replay none, or the release was measured.
    """
    from workbench.records.model_types import Release
    from workbench.records.store import Store

    rides = folder / "telemetry" / "rides"
    name = digest_of(release)[:12]
    default = load_rides(rides / "default.json")
    if default and not (rides / f"{name}.json").exists():
        bundle = Store(workspace).get(release, Release).bundle
        made = _measure_some(workspace, default[0].dataset, bundle, name)
        save_rides(rides / f"{name}.json", made)


def _measure_some(workspace: Workspace, dataset: Ref, bundle: Ref, name: str) -> list[Ride]:
    from workbench.records.dataset import load_dataset
    from workbench.records.store import Store

    whole = load_dataset(Store(workspace), dataset)
    chosen = _some_drives(whole)
    some = whole.where(lambda frame: frame.drive in chosen and frame.role != Role.BLIND)
    return measure_rides_of(workspace, replace(some, ref=dataset), bundle, name)


def _some_drives(dataset: Dataset) -> set[str]:
    """Whole drives in a random order, as many as `_REPLAYED_FRAMES` allow."""
    sizes = Counter(frame.drive for frame in dataset.frames)
    names = sorted(sizes)
    np.random.default_rng(0).shuffle(names)
    chosen: set[str] = set()
    frames = 0
    for name in names:
        if frames and frames + sizes[name] > _REPLAYED_FRAMES:
            break
        chosen.add(name)
        frames += sizes[name]
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
    director, workspace = FleetFolder(options.folder).director(), find_workspace()
    places = sorted(path for path in (options.folder / "vehicles").iterdir() if path.is_dir())
    telemetry = FleetTelemetry(
        options.folder, broker=options.broker, regressions=regressions, workspace=workspace
    )
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
