"""`workbench monitor campaign`: ask vehicles for frames, and see what came back."""

from __future__ import annotations

import getpass
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import json_option, print_result
from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import Workspace, find_workspace
from workbench.records.base import Ref, short_ref

if TYPE_CHECKING:
    from workbench.fleet.director import Director
    from workbench.fleet.server import FleetFolder
    from workbench.monitoring.campaigns import CampaignFile, Exemplar
    from workbench.records.store import Store
    from workbench.records.types import Campaign

__all__ = ()

_by_option = click.option("--by", help="Who does it.  [default: the user of this machine]")


@click.group()
def campaign() -> None:
    """Ask vehicles for frames: a signed query with a budget and rules of privacy."""


@campaign.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--dataset", help="Dataset with the frame of `like`, such as NAME@2.")
@click.option("--alarm", help="Alarm that asks for it; its digest, or the beginning.")
@click.option("--dry-run", is_flag=True, help="Only count the replayed frames that match.")
@_by_option
@json_option
def start(
    file: Path,
    dataset: str | None,
    alarm: str | None,
    dry_run: bool,
    by: str | None,
    as_json: bool,
) -> None:
    """Sign the query of FILE and send it to the fleet.

    Needs the offline keys, as `workbench fleet rollout` does. Vehicles answer at the end of a day;
    then `workbench ingest .workbench/telemetry/frames --name NAME` reads what came back.
    """
    from workbench.audit import log as audit
    from workbench.monitoring.alarms import find_alarm
    from workbench.monitoring.campaigns import load_campaign, running_campaigns
    from workbench.records.store import Store

    workspace = find_workspace()
    store, written = Store(workspace), load_campaign(file)
    folder, director = _fleet(workspace)
    today = int(director.clock.day(director.clock.now()))
    made = written.record(
        today=today,
        by=by or getpass.getuser(),
        exemplar=_exemplar(workspace, store, written, dataset),
        alarm=find_alarm(store, alarm) if alarm else None,
    )
    matching = _try(workspace, folder, made)
    result: Json = {"campaign": None, "name": made.name, "days": list(made.days), "tried": matching}
    text = [_tried_text(matching)] if matching["frames"] else []
    if not dry_run:
        running = running_campaigns(store, today)
        if any(one.name == made.name for one in running.values()):
            raise ParameterError(
                f"campaign {made.name} is running", where=file, hint="Stop it, or choose a name"
            )
        ref = store.put(made)
        _send(folder, director, {**running, ref: made}, ref, made.by)
        audit.append(
            workspace, "campaign", subjects=(ref,), by=made.by, action="started", name=made.name
        )
        result["campaign"] = ref
        text.append(
            f"started {made.name} ({short_ref(ref)}), fleet days {made.days[0]} to {made.days[1]}"
        )
    print_result(result, as_json=as_json, text="\n".join(text))


@campaign.command()
@click.argument("name")
@_by_option
@json_option
def stop(name: str, by: str | None, as_json: bool) -> None:
    """Withdraw a campaign; vehicles drop it at their next poll. Needs the offline keys."""
    from workbench.audit import log as audit
    from workbench.monitoring.campaigns import running_campaigns
    from workbench.records.store import Store

    workspace = find_workspace()
    store = Store(workspace)
    folder, director = _fleet(workspace)
    running = running_campaigns(store, int(director.clock.day(director.clock.now())))
    found = [ref for ref, one in running.items() if name in {one.name, ref, short_ref(ref)}]
    if not found:
        names = ", ".join(one.name for one in running.values()) or "none"
        raise ParameterError(f"no running campaign {name!r}", hint=f"There are: {names}")
    person = by or getpass.getuser()
    rest = {ref: one for ref, one in running.items() if ref not in found}
    _send(folder, director, rest, found[0], person)
    audit.append(workspace, "campaign", subjects=(found[0],), by=person, action="stopped")
    result: Json = {"campaign": found[0], "running": list(rest)}
    print_result(result, as_json=as_json, text=f"stopped {name}")


@campaign.command("list")
@click.option("--telemetry", "url", envvar="WORKBENCH_TELEMETRY", help="Telemetry table.")
@json_option
def list_campaigns(url: str | None, as_json: bool) -> None:
    """List campaigns, and the frames that came back for each."""
    from workbench.monitoring.campaigns import running_campaigns
    from workbench.monitoring.store import TelemetryStore
    from workbench.records.store import Store
    from workbench.records.types import Campaign

    workspace = find_workspace()
    store = Store(workspace)
    _, director = _fleet(workspace)
    running = running_campaigns(store, int(director.clock.day(director.clock.now())))
    table = url or os.environ.get("WORKBENCH_TELEMETRY") or str(workspace.root / "telemetry")
    frames: Counter[str] = Counter()
    size: Counter[str] = Counter()
    vehicles: dict[str, set[str]] = {}
    for about in TelemetryStore(table).frame_notes():
        ref = about.get("campaign", "")
        frames[ref] += 1
        size[ref] += int(about.get("bytes", 0))
        vehicles.setdefault(ref, set()).add(about["vehicle"])
    rows: list[Json] = []
    for ref, made in store.readable(Campaign):
        rows.append(
            {
                "campaign": ref,
                "name": made.name,
                "state": "running" if ref in running else "ended",
                "days": list(made.days),
                "frames": frames[ref],
                "bytes": size[ref],
                "vehicles": len(vehicles.get(ref, ())),
            }
        )
    lines = [
        f"{row['name']:<24}{row['state']:<9}days {row['days'][0]} to {row['days'][1]}  "
        f"{counted(row['frames'], 'frame')} of {counted(row['vehicles'], 'vehicle')}, "
        f"{row['bytes']:,} bytes"
        for row in rows
    ]
    text = "\n".join(lines) or "no campaign yet"
    print_result({"campaigns": rows}, as_json=as_json, text=text)


def _fleet(workspace: Workspace) -> tuple[FleetFolder, Director]:
    from workbench.fleet.server import FleetFolder

    folder = FleetFolder(workspace.root / "fleet", workspace)
    if not folder.exists:
        raise RecordError("no fleet here", where=folder.root, hint="Run `workbench fleet up`")
    return folder, folder.director()


def _exemplar(
    workspace: Workspace, store: Store, written: CampaignFile, dataset: str | None
) -> Exemplar | None:
    """The frame that the query names, and its vector.

    Raises:
        ParameterError: There is no such frame, or several.
    """
    from workbench.cli.drive import frame_vectors
    from workbench.monitoring.campaigns import Exemplar
    from workbench.records.dataset import load_dataset
    from workbench.records.references import resolve_dataset

    like = written.query.like
    if like is None:
        return None
    if dataset is None:
        raise ParameterError("`like` names a frame: which dataset has it?", hint="--dataset NAME@2")
    frames = load_dataset(store, resolve_dataset(workspace, dataset)).frames
    found = [frame for frame in frames if frame.id.startswith(like.frame)]
    if len(found) != 1:
        raise ParameterError(
            f"{counted(len(found), 'frame')} of {dataset} begin with this", where=like.frame
        )
    vectors, encoder = frame_vectors(workspace, found)
    vector = tuple(round(float(value), 4) for value in vectors[found[0].id])
    return Exemplar(found[0].id, vector, encoder)


def _try(workspace: Workspace, folder: FleetFolder, made: Campaign) -> Json:
    """Evaluate the query on the frames that the fleet replays, if it does."""
    from workbench.cli.drive import RideVectors
    from workbench.monitoring.campaigns import mismatch
    from workbench.monitoring.rides import load_rides

    rides = load_rides(folder.root / "telemetry" / "rides" / "default.json")
    vectors = RideVectors(workspace)
    if made.vector:
        vectors.prepare(rides)
    reasons = [mismatch(made, ride, frame, vectors.of) for ride in rides for frame in ride.frames]
    found = Counter(str(reason) for reason in reasons if reason)
    return {
        "frames": len(reasons),
        "matching": len(reasons) - found.total(),
        "not_sent": dict(sorted(found.items())),
    }


def _tried_text(tried: Json) -> str:
    others = ", ".join(f"{number} {reason}" for reason, number in tried["not_sent"].items())
    return (
        f"of {tried['frames']} replayed frames {tried['matching']} match and may be sent ({others})"
    )


def _send(
    folder: FleetFolder, director: Director, running: dict[Ref, Campaign], ref: Ref, by: str
) -> None:
    """Sign the list of running campaigns as a component, and assign it to all vehicles."""
    from workbench.fleet import publishing
    from workbench.fleet import rollout as stages
    from workbench.fleet.plan import Plan, PlanComponent, Stage
    from workbench.fleet.simulated import CAMPAIGNS_ECU
    from workbench.monitoring.campaigns import CAMPAIGNS_FILE, campaigns_file

    now = director.clock.now()
    with director.connect() as connection:
        vehicles = list(director.vehicles(connection).values())
        known = director.targets(connection).values()
        mine = [one.component for one in known if one.component.ecu == CAMPAIGNS_ECU]
    version = max((one.version for one in mine), default=0) + 1
    chips = {
        (one.profile.ecus[CAMPAIGNS_ECU].hardware, one.profile.ecus[CAMPAIGNS_ECU].engine)
        for one in vehicles
        if CAMPAIGNS_ECU in one.profile.ecus
    }
    if not chips:
        raise RecordError(
            "no vehicle of this fleet takes campaigns",
            where=folder.root,
            hint="Vehicles that were built before have no partition for them: build a new fleet",
        )
    row = {"runtime": "", "status": "verified", "file": CAMPAIGNS_FILE}
    rows = [row | {"chip": chip, "machine": engine} for chip, engine in sorted(chips)]
    files = {
        "manifest.json": digest.canonical_json({"targets": rows}),
        CAMPAIGNS_FILE: campaigns_file(running),
    }
    component = PlanComponent(ecu=CAMPAIGNS_ECU, release=ref)
    # It is data and not software: it goes to all at once, and no vehicle holds the others up.
    stage = Stage(name="vehicles", installed=0, reporting=0)
    plan = Plan(schema_version=1, name=CAMPAIGNS_ECU, components=(component,), stages=(stage,))
    profiles = [one.profile for one in vehicles]
    release = publishing.ReleaseFiles(ref, version, files)
    offers = publishing.publish_offers(folder, profiles, component, release, now)
    stages.start(director, plan, offers, {}, by)
    stages.advance(director)
    stages.advance(director)
