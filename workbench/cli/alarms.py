"""`workbench monitor alarms` and `monitor envelope`: what a person lets an alarm set off."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, resolve_ref
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.types import Json
from workbench.core.workspace import Workspace, find_workspace
from workbench.records.base import Ref, short_ref

if TYPE_CHECKING:
    from workbench.monitoring.alarms import AlarmState
    from workbench.monitoring.envelope import Envelope
    from workbench.pipeline.run import RunReport
    from workbench.records.types import Alarm

__all__ = ()

_SHOWN = 12  # drives

_by_option = click.option("--by", help="Who does it.  [default: the user of this machine]")
_alarm_argument = click.argument("alarm")


@click.group()
def alarms() -> None:
    """List alarms; accept one, which mines, labels and retrains, or dismiss it."""


@alarms.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are closed.")
@json_option
def list_alarms(everything: bool, as_json: bool) -> None:
    """List alarms, oldest first."""
    from workbench.monitoring.alarms import alarm_states
    from workbench.records.store import Store

    states = [
        one
        for one in alarm_states(Store(find_workspace()))
        if everything or one.status in {"open", "accepted"}
    ]
    lines = [f"{short_ref(one.ref)}  {one.status:<10}{_sentence(one.alarm)}" for one in states]
    print_result(
        {"alarms": [_state_json(one) for one in states]},
        as_json=as_json,
        text="\n".join(lines) or "no open alarm",
    )


@alarms.command()
@_alarm_argument
@json_option
def show(alarm: str, as_json: bool) -> None:
    """Show an alarm, and everything that happened to it."""
    state = _state(find_workspace(), alarm)
    found = state.alarm
    lines = [
        f"{short_ref(state.ref)}: {state.status}",
        _sentence(found),
        f"  cause: {found.cause}: {found.why}",
        f"  days {found.days[0]} to {found.days[1]}, compared with {found.reference_days[0]} to "
        f"{found.reference_days[1]}; evidence: {found.evidence}",
    ]
    if found.also:
        lines.append(f"  also changed: {', '.join(found.also)}")
    lines += [f"  drive {name}" for name in found.drives[:_SHOWN]]
    lines += [
        f"{entry.at}  {entry.detail.get('action')} by {entry.by}"
        + (f": {entry.detail['reason']}" if "reason" in entry.detail else "")
        for entry in state.history
    ]
    print_result(_state_json(state), as_json=as_json, text="\n".join(lines))


@alarms.command()
@_alarm_argument
@click.option("--reason", required=True, help="Why nothing has to be done.")
@_by_option
@json_option
def dismiss(alarm: str, reason: str, by: str | None, as_json: bool) -> None:
    """Close an alarm without a retraining."""
    from workbench.monitoring.alarms import dismiss_alarm
    from workbench.records.store import Store

    workspace = find_workspace()
    state = _state(workspace, alarm)
    dismiss_alarm(Store(workspace), state.ref, reason, by=_person(by))
    print_result(
        {"alarm": state.ref, "status": "dismissed"},
        as_json=as_json,
        text=f"{short_ref(state.ref)}: dismissed",
    )


@alarms.command()
@_alarm_argument
@click.option(
    "-p", "parameters", multiple=True, metavar="NAME=VALUE", help="Within the signed envelope."
)
@click.option("--dry-run", is_flag=True, help="Only show what would run.")
@_by_option
@json_option
def accept(
    alarm: str, parameters: tuple[str, ...], dry_run: bool, by: str | None, as_json: bool
) -> None:
    """Mine, label, retrain, validate and release for an alarm, inside the signed envelope.

    Continues an accepted alarm where its run stopped, for example to wait for people. Stop it at
    any time with `workbench cancel`; a release goes nowhere before `workbench fleet rollout`.

    Exit status: as `workbench run`.
    """
    from workbench.monitoring.alarms import alarm_states, record_hop, require_status
    from workbench.monitoring.envelope import read_envelope
    from workbench.records.store import Store

    workspace = find_workspace()
    store = Store(workspace)
    envelope = read_envelope(workspace)
    state = require_status(store, _state(workspace, alarm).ref, "open", "accepted")
    given = dict(text.partition("=")[::2] for text in parameters)
    going = state.history[-1].detail if state.status == "accepted" else None
    if going is not None and not given:
        chosen = dict(going["parameters"])
    else:
        others = [one for one in alarm_states(store) if one.ref != state.ref]
        values = envelope.settings(state.alarm, given, others)
        chosen = _pipeline_parameters(workspace, envelope, state, values)
    if dry_run:
        lines = [f"{name} = {value}" for name, value in chosen.items()]
        plan: Json = {"pipeline": envelope.pipeline, "parameters": chosen}
        print_result(plan, as_json=as_json, text="\n".join([envelope.pipeline, *lines]))
        return
    if going is None or given:
        record_hop(
            store,
            state.ref,
            "accepted",
            by=_person(by),
            parameters=chosen,
            budget=int(chosen["budget"]),
        )
    report = _run(workspace, Path(envelope.pipeline), chosen)
    released = next(
        (ref for name, ref in report.outputs.items() if name.endswith(".release")), None
    )
    if released is not None:
        record_hop(
            store,
            state.ref,
            "retrained",
            by=_person(by),
            results=(released,),
            run=report.run_id,
            verdict=report.status,
        )
    elif report.status in {"failed", "cancelled"}:
        record_hop(
            store, state.ref, "stopped", by=_person(by), run=report.run_id, why=report.status
        )
    result: Json = {
        "alarm": state.ref,
        "run": report.run_id,
        "status": report.status,
        "release": released,
        "parameters": chosen,
    }
    text = f"{short_ref(state.ref)}: run {report.run_id} {report.status}"
    if released:
        text += f", {short_ref(released)}; send it out with `workbench fleet rollout`"
    elif report.status == "waiting":
        text += "; when labels are there: `workbench monitor alarms accept` again"
    print_result(result, as_json=as_json, text=text)
    sys.exit(int(report.exit_status))


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_by_option
@json_option
def envelope(file: Path, by: str | None, as_json: bool) -> None:
    """Sign FILE, which says what alarms may set off, with the key of role `rollout`."""
    from workbench.monitoring.envelope import sign_envelope

    signed = sign_envelope(find_workspace(), file, by=_person(by))
    result = signed.model_dump(mode="json")
    limits = ", ".join(
        f"{name} {limits.minimum:g} to {limits.maximum:g}"
        for name, limits in signed.parameters.items()
    )
    text = [
        f"signed: {signed.model} may be retrained from {signed.dataset} until {signed.expires}",
        f"  for {', '.join(signed.causes)}; {limits}",
        f"  {signed.retrainings_a_week} retrainings and {signed.labels_a_week} labels a week",
    ]
    print_result(result, as_json=as_json, text="\n".join(text))


def raise_found(workspace: Workspace, made: tuple[Alarm, ...]) -> Json:
    """Raise alarms with the limits of the signed envelope; with the default ones without any."""
    from workbench.monitoring.alarms import raise_alarms
    from workbench.monitoring.envelope import read_envelope
    from workbench.records.store import Store

    store = Store(workspace)
    try:
        signed = read_envelope(workspace)
    except ParameterError as error:
        info(f"note: {error.what}: default cool-down")
        result = raise_alarms(store, made)
        return {"alarms": list(result.raised), "quiet": result.quiet}
    days = signed.cool_down_days
    result = raise_alarms(store, made, cool_down_days=days, max_open=signed.max_open)
    return {"alarms": list(result.raised), "quiet": result.quiet, "cool_down_days": days}


def raised_text(raised: Json) -> str:
    """What `raise_found` did, in words."""
    lines = [f"raised {short_ref(ref)}" for ref in raised["alarms"]]
    lines += [f"not raised for {name}: {why}" for name, why in raised["quiet"].items()]
    return "\n".join(lines) or "nothing to raise"


def _pipeline_parameters(
    workspace: Workspace, envelope: Envelope, state: AlarmState, values: Json
) -> Json:
    """Parameters of the pipeline: numbers of the envelope, and the records that are there now."""
    return {
        **values,
        "alarm": state.ref,
        "dataset": resolve_ref(workspace, envelope.dataset, ("dataset",)),
        "answers": resolve_ref(workspace, envelope.answers, ("dataset",))
        if envelope.answers
        else "",
        "start": _field_checkpoint(workspace, envelope.model, state.alarm),
        "model": envelope.model,
        "labelers": envelope.labelers,
    }


def _field_checkpoint(workspace: Workspace, model: str, alarm: Alarm) -> Ref:
    """Checkpoint of the champion. Without one: of the model that the alarm names, or of the release
    before it where that one is a candidate that disagrees with the field.

    Raises:
        ParameterError: There is neither.
    """
    from workbench.records.model_types import ExportBundle, Release
    from workbench.records.releases import registered_releases
    from workbench.records.store import Store

    store = Store(workspace)
    known = registered_releases(workspace, model)
    champion = known.aliases.get("champion")
    release = champion.record if champion else None
    if release is None and alarm.model is not None and alarm.model.startswith("release/"):
        release = store.get(alarm.model, Release)
        earlier = [one.record for one in known.releases if one.ref != alarm.model]
        if alarm.what == "disagreement" and earlier:
            release = earlier[-1]
    if release is None:
        raise ParameterError(
            f"{model} has no champion, and the alarm names no release",
            hint="Raise it with --release, or promote a release",
        )
    return store.get(release.bundle, ExportBundle).checkpoint


def _run(workspace: Workspace, file: Path, parameters: Json) -> RunReport:
    from workbench.cli.runs import TerminalDisplay
    from workbench.pipeline.graph import load_pipeline
    from workbench.pipeline.run import run_pipeline
    from workbench.pipeline.runs import earlier_durations

    pipeline = load_pipeline(file, parameters, base=file.parent)
    needs = {name: step.needs for name, step in pipeline.steps.items()}
    with TerminalDisplay(needs, earlier_durations(workspace, pipeline.name)) as display:
        return run_pipeline(workspace, pipeline, display)


def _state(workspace: Workspace, text: str) -> AlarmState:
    from workbench.monitoring.alarms import alarm_states, find_alarm
    from workbench.records.store import Store

    store: Store = Store(workspace)
    ref = find_alarm(store, text)
    return next(one for one in alarm_states(store) if one.ref == ref)


def envelope_state(workspace: Workspace) -> str:
    """The envelope in force, in words, or why there is none."""
    from workbench.monitoring.envelope import read_envelope

    try:
        signed = read_envelope(workspace)
    except WorkbenchError as error:
        return error.what
    return f"{signed.model}, until {signed.expires}"


def _person(by: str | None) -> str:
    return by or getpass.getuser()


def _sentence(alarm: Alarm) -> str:
    change = f"{alarm.reference:.3g} to {alarm.current:.3g}"
    return f"{alarm.signal} in {alarm.slice}: {change} ({alarm.what}, p {alarm.p_value:.2g})"


def _state_json(state: AlarmState) -> Json:
    return {
        "ref": state.ref,
        "status": state.status,
        "alarm": state.alarm.model_dump(mode="json"),
        "history": [
            {"at": one.at, "by": one.by, "subjects": list(one.subjects), **one.detail}
            for one in state.history
        ],
    }
