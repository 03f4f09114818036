"""`workbench fleet`: send releases to vehicles in stages, watch, stop and take back."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, resolve_ref
from workbench.core.errors import ParameterError, RecordError, Refusal
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import Workspace, find_workspace, write_atomic
from workbench.records.base import Ref, short_ref

if TYPE_CHECKING:
    from workbench.fleet.director import Director
    from workbench.fleet.publishing import ReleaseFiles
    from workbench.fleet.server import FleetFolder
    from workbench.monitoring.broker import BrokerAccount
    from workbench.records.claims import Waiver
    from workbench.records.model_types import Release
    from workbench.records.store import Store

__all__ = ()

_by_option = click.option("--by", help="Who does it.  [default: the user of this machine]")
_rollout_argument = click.argument("rollout_id", metavar="[ROLLOUT]", required=False)


@click.group()
def fleet() -> None:
    """Send releases to vehicles in stages, watch, stop and take back.

    ROLLOUT may be left out when only one is going on.
    """


@fleet.command()
@click.option(
    "--vehicles",
    type=click.IntRange(0),
    default=0,
    help="Build this many simulated vehicles, if there is no fleet yet, and let them drive.",
)
@click.option(
    "--speed",
    type=click.FloatRange(1),
    default=1.0,
    show_default=True,
    help="Fleet seconds a real second; at 2880 a simulated day takes 30 s.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the server.")
@click.option(
    "--regression",
    metavar="VERSION=RATIO",
    multiple=True,
    help="Simulated: this version has so many times the fallbacks. Repeatable.",
)
@click.option(
    "--rides",
    metavar="DATASET",
    help="Recorded drives that simulated vehicles replay in their telemetry, such as NAME@2.  "
    "[default: the newest recorded dataset, if there is a bundle too; `none`: at random]",
)
def up(
    vehicles: int, speed: float, port: int, regression: tuple[str, ...], rides: str | None
) -> None:
    """Serve vehicles on loopback until Ctrl-C; the first time, generate keys and vehicles.

    Where mosquitto is installed, a broker and the service that stores telemetry run too:
    `workbench monitor status`. Move FLEET/offline-keys to another machine afterwards: only
    `rollout` needs them.
    """
    from datetime import UTC, datetime

    from workbench.cli.drive import replay_rides
    from workbench.fleet import rollout
    from workbench.fleet.server import FleetServer
    from workbench.fleet.simulated import build_fleet

    workspace = find_workspace()
    folder = _folder(workspace)
    new = not folder.exists
    if new:
        folder.create(datetime.now(UTC))
    director = folder.director()
    director.start_clock(speed)
    if new and vehicles:
        info(f"building {counted(vehicles, 'simulated vehicle')} with keys and disks of their own")
        build_fleet(folder, vehicles)
    with director.connect() as connection:
        simulated = any(one.profile.simulated for one in director.vehicles(connection).values())
    if simulated:
        replayed = replay_rides(workspace, folder.root, rides)
    server = FleetServer(folder, port=port, tick=rollout.advance).start()
    info(f"fleet server: {server.url}, state in {folder.root}")
    with ExitStack() as stack:
        stack.callback(server.stop)
        broker = _start_broker(director, folder.root, stack)
        if simulated:
            info("evidence: simulated (real keys, disks and messages; the driving is drawn)")
            info(f"telemetry: {replayed}")
            command = [sys.executable, "-m", "workbench.cli.drive", str(folder.root), server.url]
            command += [part for each in regression for part in ("--regression", each)]
            command += ["--broker"] if broker else []
            _start_process(command, folder.root / "vehicles.log", stack)
        signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(0))
        try:
            signal.pause()
        except KeyboardInterrupt:
            info("stopped; `workbench fleet up` continues")


def _start_broker(director: Director, folder: Path, stack: ExitStack) -> bool:
    """Start the broker and the service that stores telemetry; False without mosquitto."""
    from workbench.monitoring.broker import Broker, mosquitto_path

    if mosquitto_path() is None:
        info("no telemetry: mosquitto is not installed (apt-get install mosquitto)")
        return False
    broker = Broker(folder / "telemetry" / "broker")
    with director.connect() as connection:
        broker.add_accounts(director.vehicles(connection))
    broker.start()
    stack.callback(broker.stop)
    command = [sys.executable, "-m", "workbench", "fleet", "ingest"]
    _start_process(command, folder / "telemetry" / "ingest.log", stack)
    return True


def _start_process(command: list[str], log: Path, stack: ExitStack) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    stack.callback(process.wait)
    stack.callback(process.terminate)


@fleet.command()
@click.option(
    "--telemetry",
    "url",
    envvar="WORKBENCH_TELEMETRY",
    metavar="URL",
    help="Telemetry table: a folder or an fsspec address.  [env: WORKBENCH_TELEMETRY; default: "
    "telemetry in the workspace]",
)
@click.option(
    "--broker",
    metavar="HOST:PORT",
    help="MQTT broker with TLS.  [default: the one of `workbench fleet up`]",
)
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its CA (PEM)."
)
@click.option("--user", default="ingest", show_default=True, help="Account at the broker.")
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the account's password.",
)
def ingest(
    url: str | None, broker: str | None, ca: Path | None, user: str, password_file: Path | None
) -> None:
    """Store what vehicles send until Ctrl-C; `workbench fleet up` starts this for you.

    One such service for each table: two would store a bundle twice, which is read once.
    """
    from workbench.monitoring.broker import Broker
    from workbench.monitoring.ingest import Ingest, metrics_text
    from workbench.monitoring.mqtt import serve_ingest
    from workbench.monitoring.store import TelemetryStore

    workspace = find_workspace()
    director, folder = _director(workspace), _folder(workspace).root / "telemetry"
    table = url or str(workspace.root / "telemetry")
    account = (
        Broker(folder / "broker").account(user)
        if broker is None
        else _account(broker, ca, user, password_file)
    )
    service = Ingest(
        TelemetryStore(table),
        lambda: int(director.clock.day(director.clock.now())),
    )
    info(f"telemetry of {account.host}:{account.port} to {table}")
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(0))
    parent = os.getppid()

    def report() -> None:
        state = service.as_json()
        write_atomic(folder / "ingest.json", json.dumps(state).encode())
        write_atomic(folder / "metrics.prom", metrics_text(state).encode())

    report()
    # Its parent may be a `fleet up` that was killed.
    serve_ingest(service, account, stop=lambda: os.getppid() != parent, on_flush=report)


@fleet.command()
@json_option
def status(as_json: bool) -> None:
    """Show the fleet: versions, rollouts, stages, and why one is held."""
    from workbench.fleet.rollout import fleet_status

    result = fleet_status(_director(find_workspace()))
    print_result(result, as_json=as_json, text=_status_text(result))


@fleet.command()
@click.argument("plan", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--release",
    "releases",
    metavar="ECU=RELEASE",
    multiple=True,
    help="Release of an ECU in place of the plan's. Repeatable.",
)
@_by_option
@json_option
def rollout(plan: Path, releases: tuple[str, ...], by: str | None, as_json: bool) -> None:
    """Verify and sign the releases of PLAN for the fleet, and start its first stage.

    A release that its gates did not promote needs a waiver of each gate (`workbench waive`).
    Needs the offline keys. `workbench fleet up` has to run for anything to happen.
    """
    from workbench.cli.drive import replay_release
    from workbench.fleet import publishing
    from workbench.fleet import rollout as stages
    from workbench.fleet.plan import load_plan
    from workbench.fleet.simulated import SHADOW_ECU

    workspace = find_workspace()
    director, folder = _director(workspace), _folder(workspace)
    read = load_plan(plan)
    given = dict(text.partition("=")[::2] for text in releases)
    unknown = given.keys() - {component.ecu for component in read.components}
    if unknown:
        raise ParameterError(f"plan has no ECU {', '.join(sorted(unknown))}", where=plan)
    components = [
        one.model_copy(update={"release": given.get(one.ecu, one.release)})
        for one in read.components
    ]
    read = read.model_copy(update={"components": tuple(components)})
    found = [_release(workspace, one.release) for one in components]
    verified = [release for release, _ in found]
    stages.check_free(director, read)
    with director.connect() as connection:
        vehicles = list(director.vehicles(connection).values())
    profiles, now = [one.profile for one in vehicles], director.clock.now()
    offers = [
        offer
        for component, release in zip(components, verified, strict=True)
        for offer in publishing.publish_offers(folder, profiles, component, release, now)
    ]
    rollbacks = publishing.publish_rollbacks(
        folder, vehicles, [component.ecu for component in components], now
    )
    note = "; ".join(str(waiver) for _, waivers in found for waiver in waivers)
    for component, release in zip(components, verified, strict=True):
        if component.ecu in {"front-camera", SHADOW_ECU}:
            replay_release(workspace, folder.root, release.ref)
    started = stages.start(director, read, offers, rollbacks, _person(by), note=note)
    result: Json = {
        "rollout": started,
        "plan": str(plan),
        "evidence": "simulated" if any(one.simulated for one in profiles) else "real",
        "releases": {
            component.ecu: {"release": release.ref, "version": release.version}
            for component, release in zip(components, verified, strict=True)
        },
        "targets": [offer.target.path for offer in offers],
    }
    print_result(result, as_json=as_json, text=f"started {started}; see `workbench fleet status`")


@fleet.command()
@_rollout_argument
@click.option("--by", required=True, help="A person whom the plan names.")
@json_option
def approve(rollout_id: str | None, by: str, as_json: bool) -> None:
    """Approve the stage that a rollout waits for."""
    _act("approve", rollout_id, by, as_json)


@fleet.command()
@_rollout_argument
@_by_option
@json_option
def pause(rollout_id: str | None, by: str | None, as_json: bool) -> None:
    """Offer nothing more; vehicles keep what they run."""
    _act("pause", rollout_id, by, as_json)


@fleet.command()
@_rollout_argument
@_by_option
@json_option
def resume(rollout_id: str | None, by: str | None, as_json: bool) -> None:
    """Continue a paused rollout; a stage held for lack of evidence counts as accepted by you."""
    _act("resume", rollout_id, by, as_json)


@fleet.command()
@_rollout_argument
@_by_option
@json_option
def abort(rollout_id: str | None, by: str | None, as_json: bool) -> None:
    """End a rollout; vehicles keep what they run."""
    _act("abort", rollout_id, by, as_json)


@fleet.command()
@_rollout_argument
@click.option("--ecu", "ecus", multiple=True, help="Only this component. Repeatable.")
@_by_option
@json_option
def rollback(rollout_id: str | None, ecus: tuple[str, ...], by: str | None, as_json: bool) -> None:
    """Send every vehicle of a rollout back to what it ran before, at its next poll.

    Exit status: 0 only if every vehicle can go back.
    """
    from workbench.fleet import rollout as stages

    director = _director(find_workspace())
    chosen = rollout_id or _only_rollout(director, ended=True)
    stuck = stages.rollback(director, chosen, _person(by), ecus)
    result: Json = {"rollout": chosen, "state": "rolled-back", "cannot": stuck}
    lines = [f"{chosen}: every vehicle goes back at its next poll, except {len(stuck)}"]
    lines += [f"  {vehicle}: {why}" for vehicle, why in stuck.items()]
    print_result(result, as_json=as_json, text="\n".join(lines))
    if stuck:
        sys.exit(1)


def _act(action: str, rollout_id: str | None, by: str | None, as_json: bool) -> None:
    from workbench.fleet import rollout as stages

    director = _director(find_workspace())
    chosen = rollout_id or _only_rollout(director)
    getattr(stages, action)(director, chosen, _person(by))
    found = next(one for one in stages.fleet_status(director)["rollouts"] if one["id"] == chosen)
    result: Json = {"rollout": chosen, "state": found["state"], "stage": found["stage"]}
    where = f", stage {found['stage']}" if found["stage"] else ""
    print_result(result, as_json=as_json, text=f"{chosen}: {found['state']}{where}")


def _folder(workspace: Workspace) -> FleetFolder:
    from workbench.fleet.server import FleetFolder

    return FleetFolder(workspace.root / "fleet", workspace)


def _director(workspace: Workspace) -> Director:
    folder = _folder(workspace)
    if not folder.exists:
        raise RecordError("no fleet here", where=folder.root, hint="Run `workbench fleet up`")
    return folder.director()


def _only_rollout(director: Director, *, ended: bool = False) -> str:
    from workbench.fleet.rollout import fleet_status
    from workbench.fleet.simulated import CAMPAIGNS_ECU

    known = fleet_status(director)["rollouts"]
    going = [one["id"] for one in known if one["state"] in {"running", "waiting", "paused"}]
    if not going and ended:
        # Campaigns are stopped by `workbench monitor campaign stop`.
        going = [one["id"] for one in known if not one["id"].startswith(f"{CAMPAIGNS_ECU}-")][-1:]
    if len(going) != 1:
        names = ", ".join(one["id"] for one in known) or "none"
        raise ParameterError(
            f"{counted(len(going), 'rollout')} going on: name one", hint=f"There are: {names}"
        )
    only: str = going[0]
    return only


def _release(workspace: Workspace, reference: str) -> tuple[ReleaseFiles, list[Waiver]]:
    """A release, verified, with the waivers that let it out where its gates did not.

    The bytes that were verified are the ones that are sent.
    """
    from workbench.fleet.publishing import ReleaseFiles
    from workbench.records.model_types import Release
    from workbench.records.store import Store
    from workbench.release.publishing import verify_release

    store, ref = Store(workspace), resolve_ref(workspace, reference, ("release",))
    record = store.get(ref, Release)
    verified = verify_release(workspace, ref)
    waivers = [] if record.promoted else _waivers(store, ref, record)
    if record.version is None:
        raise ParameterError(
            "release has no version: it is from before versions were signed",
            where=ref,
            hint="Release the bundle again",
        )
    return ReleaseFiles(ref, record.version, verified.contents), waivers


def _waivers(store: Store, ref: Ref, record: Release) -> list[Waiver]:
    """The waivers of every required gate that did not pass.

    Raises:
        ParameterError: One is lacking or has expired.
    """
    from workbench.records.base import GateReport, Verdict
    from workbench.records.claims import read_waivers

    gates = store.get(record.gates, GateReport).gates
    needed = [one.name for one in gates if one.required and one.verdict is not Verdict.PASS]
    known = {one.gate: one for one in read_waivers(store).get(ref, ())}
    valid = [known[name] for name in needed if name in known and not known[name].expired]
    if len(valid) < len(needed) or not needed:
        expired = [str(one) for one in known.values() if one.expired]
        lacking = ", ".join(name for name in needed if name not in {one.gate for one in valid})
        raise ParameterError(
            f"gates of this release say {record.verdict}: it may not go out"
            + (f" ({'; '.join(expired)})" if expired else ""),
            where=ref,
            hint=f"Release a model that passes, or `workbench waive {short_ref(ref)} GATE --reason "
            f"… --until DATE` for {lacking or 'its gates'}",
            reason=Refusal.WAIVER_EXPIRED if expired else Refusal.NOT_PROMOTED,
        )
    return valid


def _account(broker: str, ca: Path | None, user: str, password_file: Path | None) -> BrokerAccount:
    from workbench.monitoring.broker import BrokerAccount

    host, _, port = broker.rpartition(":")
    if not host or not port.isdecimal() or ca is None or password_file is None:
        raise ParameterError(
            "a broker needs its host, port, CA and a password file",
            where=broker,
            hint="--broker HOST:PORT --ca FILE --password-file FILE",
        )
    password = password_file.read_text().strip()
    return BrokerAccount(host=host, port=int(port), ca=ca.read_text(), user=user, password=password)


def _person(by: str | None) -> str:
    return by or getpass.getuser()


def _status_text(result: Json) -> str:
    lines = [f"{counted(result['vehicles'], 'vehicle')}, evidence: {result['evidence']}"]
    for ecu, versions in result["versions"].items():
        counts = ", ".join(f"version {number}: {count}" for number, count in versions.items())
        lines.append(f"  {ecu:<22}{counts}")
    for one in result["rollouts"]:
        stage = f", stage {one['stage']}" if one["stage"] else ""
        lines.append(
            f"{one['id']}: {one['state']}{stage}" + (f" ({one['why']})" if one["why"] else "")
        )
        lines.append(f"  {one['running']} run it, {one['back']} went back")
        for reason, count in one["excluded"].items():
            lines.append(f"  not offered to {counted(count, 'vehicle')}: {reason}")
        if one["judgement"]:
            found = one["judgement"]
            lines.append(
                f"  judge: {found['outcome']} at look {found['look']} of {found['looks']}: "
                f"{found['why']} ({found['canary']['reporting']} of "
                f"{found['canary']['vehicles']} canaries report)"
            )
    return "\n".join(lines)
