"""``workbench up | down | status | doctor``."""

from __future__ import annotations

import click

from workbench import services, workspace
from workbench.commands.common import emit, json_option, say
from workbench.services import ServiceState


@click.command()
@json_option
def up(as_json: bool) -> None:
    """Start the servers of this workbench, or find those already running."""
    states = services.up(workspace.find(), progress=say)
    emit(_json(states), as_json=as_json, text=_table(states) + _sign_in(states))


@click.command()
@json_option
def down(as_json: bool) -> None:
    """Stop the servers that were started here. Their data stays."""
    stopped = services.down(workspace.find())
    text = f"stopped {', '.join(stopped)}" if stopped else "nothing was running"
    emit({"stopped": stopped}, as_json=as_json, text=text)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show each server's state, address and where its credentials lie."""
    states = services.status(workspace.find())
    text = _table(states)
    if not all(state.usable for state in states.values()):
        text += "\n`workbench up` starts what is not running"
    emit(_json(states), as_json=as_json, text=text)


def _json(states: dict[str, ServiceState]) -> dict[str, object]:
    return {
        "workspace": str(workspace.find().root),
        "services": {name: state.to_json() for name, state in states.items()},
    }


def _table(states: dict[str, ServiceState]) -> str:
    rows = [f"{s.name:<14}{s.state:<10}{s.url or '-'}" for s in states.values()]
    for row, state in enumerate(states.values()):
        if not state.usable:
            rows[row] += f"   ({state.detail})"
    return "\n".join(rows)


def _sign_in(states: dict[str, ServiceState]) -> str:
    state = states.get("label-studio")
    if state is None or state.state != "running":
        return ""
    from workbench.services.label_studio import EMAIL

    return f"\nSign in to Label Studio as {EMAIL}; the password is in\n  {state.credentials}"
