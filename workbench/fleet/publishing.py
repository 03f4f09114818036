"""What a rollout needs signed before it starts; the only code that needs the offline keys.

Rollback releases are signed in advance: for each content that the fleet runs, the same bytes with a
higher release counter. A rollback then takes no key but the director's, and can be automatic.
Whoever steals the director's keys could then send the previous version too, and nothing older.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from workbench.core.errors import RecordError
from workbench.core.text import short_repr
from workbench.fleet.components import Component, Offer, Target, VehicleProfile, pack
from workbench.fleet.director import VehicleStatus
from workbench.fleet.plan import PlanComponent
from workbench.fleet.server import FleetFolder
from workbench.records.base import Ref

__all__ = ()


@short_repr
@dataclass(frozen=True)
class ReleaseFiles:
    """A verified release: its record, number, and the content of its signed folder."""

    ref: Ref
    version: int
    files: Mapping[str, bytes]


def publish_offers(
    folder: FleetFolder,
    vehicles: Sequence[VehicleProfile],
    component: PlanComponent,
    release: ReleaseFiles,
    now: datetime,
) -> list[Offer]:
    """Sign a release for each chip and engine that the fleet has; needs the offline keys.

    Rows come from the bundle's own target matrix, as its export recorded them.

    Raises:
        RecordError: No row of the bundle's target matrix fits an ECU of the fleet.
    """
    manifest = json.loads(release.files["manifest.json"])
    rows: list[dict[str, str]] = manifest.get("targets", [])
    have = {
        (ecu.hardware, ecu.engine)
        for vehicle in vehicles
        for name, ecu in vehicle.ecus.items()
        if name == component.ecu
    }
    counter = _next_counter(folder, component.ecu)
    offers = []
    for row in rows:
        if (row["chip"], row["machine"]) not in have:
            continue
        made = Component(
            ecu=component.ecu,
            version=release.version,
            counter=counter,
            hardware_ids=(row["chip"],),
            file=row["file"],
            release=release.ref,
            requires=component.requires,
            conflicts=component.conflicts,
        )
        content = pack(release.files, component.ecu, row["chip"], row["file"])
        offers.append(
            Offer(
                target=folder.images.publish(made, content, now),
                engine=row["machine"],
                runtime=row["runtime"],
                proof=row["status"],
                model_year=component.model_year,
                calibrations=component.calibrations,
                min_proof=component.min_proof,
            )
        )
    if not offers:
        chips = ", ".join(sorted({f"{chip} ({engine})" for chip, engine in have})) or "none"
        raise RecordError(
            f"no file of this release is for a {component.ecu} of the fleet",
            where=release.ref,
            hint=f"The fleet has: {chips}; see the targets in the bundle's manifest.json",
        )
    return offers


def publish_rollbacks(
    folder: FleetFolder, vehicles: Sequence[VehicleStatus], ecus: Sequence[str], now: datetime
) -> dict[str, Target]:
    """Sign every content that the fleet runs once more, with higher counters.

    Returns:
        The new target by the path of the old one.
    """
    running = {
        target.path: target
        for vehicle in vehicles
        for ecu, target in vehicle.installed.items()
        if ecu in ecus
    }
    rollbacks = {}
    for path, target in sorted(running.items()):
        counter = _next_counter(folder, target.component.ecu)
        component = target.component.model_copy(update={"counter": counter})
        rollbacks[path] = folder.images.publish(component, folder.images.content(target), now)
    return rollbacks


def _next_counter(folder: FleetFolder, ecu: str) -> int:
    counters = [
        target.component.counter
        for target in folder.images.current().values()
        if target.component.ecu == ecu
    ]
    return max(counters, default=0) + 1
