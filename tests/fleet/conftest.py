"""A small fleet with a real server on loopback: three ECUs a vehicle, small files as models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from workbench.core import digest
from workbench.fleet.components import Component, EcuProfile, Target, VehicleProfile, pack
from workbench.fleet.director import Director
from workbench.fleet.server import FleetFolder, FleetServer
from workbench.fleet.vehicle import Vehicle
from workbench.records.base import make_ref

ORIN, XAVIER = "NVIDIA Orin GPU", "NVIDIA Xavier GPU"
ECUS = ("front-camera", "planner", "cabin")


def profile(name: str, hardware: str = ORIN, **values: object) -> VehicleProfile:
    runtime = "10.3" if hardware == ORIN else "8.5"
    ecu = EcuProfile(hardware=hardware, engine="tensorrt", runtime=runtime)
    return VehicleProfile(id=name, ecus=dict.fromkeys(ECUS, ecu), **values)


@dataclass
class World:
    """A fleet, its server, and shortcuts that sign and assign."""

    folder: FleetFolder
    server: FleetServer
    scratch: Path
    factory: dict[str, dict[str, Path]] = field(default_factory=dict)

    @property
    def director(self) -> Director:
        return self.server.director

    def now(self) -> datetime:
        return self.director.clock.now()

    def archive(self, ecu: str, text: str, hardware: str = ORIN) -> bytes:
        files = {"model.bin": text.encode(), "manifest.json": b"{}"}
        return pack(files, ecu, hardware, "model.bin")

    def component(
        self,
        ecu: str,
        version: int,
        *,
        counter: int | None = None,
        hardware: str = ORIN,
        **values: object,
    ) -> Component:
        return Component(
            ecu=ecu,
            version=version,
            counter=version if counter is None else counter,
            hardware_ids=(hardware,),
            file="model.bin",
            release=make_ref("release", digest.of_bytes(f"{ecu} {version}".encode())),
            **values,
        )

    def publish(
        self,
        ecu: str,
        version: int,
        *,
        content: bytes | None = None,
        hardware: str = ORIN,
        **values: object,
    ) -> Target:
        component = self.component(ecu, version, hardware=hardware, **values)
        content = content or self.archive(ecu, f"{ecu} version {version}", hardware)
        target = self.folder.images.publish(component, content, self.now())
        self.director.add_targets([target])
        return target

    def assign(self, vehicle: str, *targets: Target) -> None:
        with self.director.connect() as connection:
            connection.execute("DELETE FROM assignments WHERE vehicle = ?", (vehicle,))
            for target in targets:
                connection.execute(
                    "INSERT INTO assignments VALUES (?, ?, ?, 'test')",
                    (vehicle, target.component.ecu, target.path),
                )

    def build(self, name: str, hardware: str = ORIN, **values: object) -> Path:
        """A vehicle with version 1 on each ECU; returns its folder."""
        if hardware not in self.factory:
            self.factory[hardware] = {}
            for ecu in ECUS:
                target = self.publish(ecu, 1, hardware=hardware)
                file = self.scratch / f"{hardware} {ecu}.tar"
                file.write_bytes(self.folder.images.content(target))
                file.with_suffix(".json").write_text(target.model_dump_json())
                self.factory[hardware][ecu] = file
        folder = self.scratch / "vehicles" / name
        made = profile(name, hardware, **values)
        keys = Vehicle.create(folder, made, self.folder.trust(), self.factory[hardware])
        vehicle = Vehicle(folder, self.server.url)
        self.director.register(made, keys, list(vehicle.installed.values()))
        return folder

    def pass_time(self, passed: timedelta) -> None:
        """Set the fleet's clock forward; that of the operating system stays."""
        with self.director.connect() as connection:
            row = connection.execute("SELECT value FROM settings WHERE name = 'clock'").fetchone()
            start, real_start, speed = json.loads(row["value"])
            value = json.dumps([start, real_start - passed.total_seconds() / speed, speed])
            connection.execute("UPDATE settings SET value = ? WHERE name = 'clock'", (value,))
        self.folder.images.refresh(self.now())

    def vehicle(self, folder: Path, **options: object) -> Vehicle:
        return Vehicle(folder, self.server.url, **options)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = FleetFolder(tmp_path / "fleet")
    folder.create(datetime.now(UTC))
    folder.director().start_clock(1.0)
    server = FleetServer(folder).start()
    yield World(folder, server, tmp_path)
    server.stop()
