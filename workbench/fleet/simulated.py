"""A simulated fleet: real vehicles, keys, disks and messages; only the driving is drawn at random.

Each vehicle has a rate of late frames and of fallbacks of its own (gamma, coefficient of variation
1), which a release multiplies. Whatever this fleet shows is marked ``evidence: simulated``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from workbench.core import digest
from workbench.core.errors import WorkbenchError
from workbench.fleet.components import Component, EcuProfile, Target, VehicleProfile, pack
from workbench.fleet.server import FleetFolder
from workbench.fleet.vehicle import DayCounts, Vehicle
from workbench.records.base import make_ref

__all__ = ["drive"]

SHADOW_ECU = "front-camera-shadow"
CAMPAIGNS_ECU = "campaigns"
FRAMES_A_DAY = 20_000
_RATES = {"late": 2e-4, "fallbacks": 5e-4}  # of a frame, mean over vehicles
_CPU = EcuProfile(hardware="x86-64 CPU", engine="onnxruntime", runtime="1.23.0")
_CAMERAS = (
    # Share of the vehicles, and what their front camera's ECU is.
    (0.7, EcuProfile(hardware="NVIDIA Orin GPU", engine="tensorrt", runtime="10.3")),
    (0.2, EcuProfile(hardware="NVIDIA Thor GPU", engine="tensorrt", runtime="10.8")),
    (0.1, EcuProfile(hardware="NVIDIA Xavier GPU", engine="tensorrt", runtime="8.5")),
)
_SITES = ("lab",) * 2 + ("simulation",) * 2 + ("track",) * 3
_FACTORY = make_ref("release", "0" * 64)


def build_fleet(folder: FleetFolder, count: int, *, seed: int = 0) -> list[Path]:
    """Build and register simulated vehicles with factory software on three ECUs.

    Args:
        folder: A fleet with keys and a clock.
        count: Number of vehicles; the first are in the lab, in the simulation and on the track.

    Returns:
        The folder of each vehicle.
    """
    director, trust = folder.director(), folder.trust()
    rng = np.random.default_rng(seed)
    profiles = [_profile(number, rng) for number in range(count)]
    factory: dict[tuple[str, str], Path] = {}
    for ecu, hardware in sorted(
        {(ecu, one.hardware) for profile in profiles for ecu, one in profile.ecus.items()}
    ):
        factory[ecu, hardware] = _factory_software(folder, ecu, hardware)
    built = []
    for profile in profiles:
        place = folder.root / "vehicles" / profile.id
        software = {ecu: factory[ecu, one.hardware] for ecu, one in profile.ecus.items()}
        keys = Vehicle.create(place, profile, trust, software)
        targets = [
            Target.model_validate_json(one.with_suffix(".json").read_bytes())
            for one in software.values()
        ]
        director.register(profile, keys, targets)
        built.append(place)
    return built


def drive(
    vehicle: str, day: int, version: int, regressions: Mapping[int, float] | None = None
) -> DayCounts:
    """A simulated day: the same for the same vehicle, day and ratio.

    Args:
        version: Version of the front camera's software.
        regressions: Ratio of the rate of fallbacks, by version; 1 by default.
    """
    own = np.random.default_rng(_seed(vehicle))
    rates = {name: mean * own.gamma(1.0, 1.0) for name, mean in _RATES.items()}
    rates["fallbacks"] *= (regressions or {}).get(version, 1.0)
    rng = np.random.default_rng(_seed(f"{vehicle} {day}"))
    frames = int(FRAMES_A_DAY * rng.uniform(0.5, 1.5))
    counts = {name: min(frames, int(rng.poisson(rate * frames))) for name, rate in rates.items()}
    boxes = {"car": 4, "pedestrian": 1}
    detections = {name: int(rng.poisson(mean * frames)) for name, mean in boxes.items()}
    return DayCounts(day=day, frames=frames, detections=detections, **counts)


class SimulatedFleet:
    """Vehicles in threads of one process, each polling and reporting as a real one would.

    Args:
        regressions: Ratio of the rate of fallbacks by version of the front camera's software.
        on_day: Called with each vehicle and the counts of a day that it has reported.
        driver: What a day of a vehicle is, such as a replay of real drives; by default `drive`.
    """

    def __init__(
        self,
        places: Sequence[Path],
        url: str,
        regressions: Mapping[int, float] | None = None,
        on_day: Callable[[Vehicle, DayCounts], None] | None = None,
        *,
        driver: Callable[[Vehicle, int], DayCounts] | None = None,
    ) -> None:
        self.vehicles = [Vehicle(place, url) for place in places]
        self._drive = driver or partial(_drive, regressions=dict(regressions or {}))
        self._on_day = on_day or (lambda _vehicle, _counts: None)

    def poll(self, threads: int = 2) -> list[str]:
        """Every vehicle asks once; returns what was refused."""
        with ThreadPoolExecutor(threads) as pool:
            return [text for text in pool.map(_poll, self.vehicles) if text]

    def report(self, day: int, threads: int = 2) -> list[str]:
        """Every vehicle drives and reports a day; returns what was refused."""

        def report(vehicle: Vehicle) -> str:
            counts = self._drive(vehicle, day)
            try:
                self._on_day(vehicle, counts)
                vehicle.send_report(counts)
            except WorkbenchError as error:
                return f"{vehicle.profile.id}: {error}"
            return ""

        with ThreadPoolExecutor(threads) as pool:
            return [text for text in pool.map(report, self.vehicles) if text]


def _drive(vehicle: Vehicle, day: int, regressions: Mapping[int, float]) -> DayCounts:
    version = vehicle.installed["front-camera"].component.version
    return drive(vehicle.profile.id, day, version, regressions)


def _poll(vehicle: Vehicle) -> str:
    try:
        vehicle.update()
    except WorkbenchError as error:
        return f"{vehicle.profile.id}: {error}"
    return ""


def _profile(number: int, rng: np.random.Generator) -> VehicleProfile:
    share, camera = rng.random(), _CAMERAS[-1][1]
    for part, candidate in _CAMERAS:
        if share < part:
            camera = candidate
            break
        share -= part
    on_site = number < len(_SITES)
    return VehicleProfile(
        id=f"vehicle-{number + 1:04}",
        site=_SITES[number] if on_site else "road",
        region=str(rng.choice(["eu", "us"])),
        model_year=int(rng.integers(2022, 2027)),
        # Vehicles in the lab and on the track are of the common kind.
        ecus={
            "front-camera": _CAMERAS[0][1] if on_site else camera,
            "planner": _CPU,
            "cabin": _CPU,
            # Partitions of the camera's ECU and of the primary: a candidate that nobody drives by,
            # and queries for frames. They are updated, stopped and taken back like the others.
            SHADOW_ECU: _CAMERAS[0][1] if on_site else camera,
            CAMPAIGNS_ECU: _CPU,
        },
        simulated=True,
    )


def _factory_software(folder: FleetFolder, ecu: str, hardware: str) -> Path:
    """Stand-in for what an ECU has before its first release."""
    component = Component(
        ecu=ecu,
        version=0,
        counter=0,
        hardware_ids=(hardware,),
        file="factory.txt",
        release=_FACTORY,
    )
    content = pack({"factory.txt": f"{ecu}\n".encode()}, ecu, hardware, "factory.txt")
    director = folder.director()
    target = folder.images.publish(component, content, director.clock.now())
    director.add_targets([target])
    file = folder.root / "factory" / f"{ecu}-{digest.of_bytes(hardware.encode())[:12]}.tar"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.with_suffix(".json").write_text(target.model_dump_json())
    return file


def _seed(text: str) -> int:
    return int(digest.of_bytes(text.encode())[:12], 16)
