"""What is known of a server: what people are shown, and the few facts kept between commands."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.workspace import Workspace, write_atomic

Condition = Literal["running", "stopped", "external", "broken"]


@dataclass(frozen=True)
class ServiceState:
    """One server as it was found a moment ago.

    Attributes:
        state: ``running``: started here and answering. ``external``: named by an environment
            variable, answering. ``stopped``: nothing is running. ``broken``: something is there
            but does not answer, or an external server is away.
        url: Where clients connect; None when nothing was ever started.
        credentials: The file that holds the password or token, never the secret itself.
        detail: One sentence for people.
    """

    name: str
    state: Condition
    url: str | None = None
    pid: int | None = None
    credentials: Path | None = None
    log: Path | None = None
    detail: str = ""

    @property
    def usable(self) -> bool:
        return self.state in ("running", "external")

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        for name in ("credentials", "log"):
            body[name] = None if body[name] is None else str(body[name])
        return body


@dataclass(frozen=True)
class Remembered:
    """Facts of the last start. ``born`` tells the process from a later one with the same pid."""

    pid: int
    born: float
    port: int


def folder_of(place: Workspace, name: str) -> Path:
    return place.services / name


def recall(place: Workspace, name: str) -> Remembered | None:
    """What the last start wrote; None when there was none or the file is damaged."""
    try:
        body = json.loads((folder_of(place, name) / "state.json").read_bytes())
        return Remembered(int(body["pid"]), float(body["born"]), int(body["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(place: Workspace, name: str, facts: Remembered) -> None:
    path = folder_of(place, name) / "state.json"
    write_atomic(path, json.dumps(asdict(facts), indent=1).encode())
