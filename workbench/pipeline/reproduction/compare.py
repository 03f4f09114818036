"""How two environments, two records or two executed notebooks differ, in words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from workbench import digest
from workbench.pipeline.reproduction.report import CellDifference
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import Environment

Json = dict[str, Any]

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_SHOWN = 160


def environments(recorded: Environment, now: Environment) -> list[str]:
    """What is installed or built in otherwise than recorded; empty when nothing is."""
    found = []
    if recorded.python != now.python:
        found.append(f"Python {recorded.python}, here {now.python}")
    before, here = _versions(recorded), _versions(now)
    for name in sorted({*before, *here}):
        if before.get(name) != here.get(name):
            found.append(
                f"{name} {before.get(name, 'not installed')}, here {here.get(name, 'none')}"
            )
    for key in sorted({*recorded.machine, *now.machine}):
        if recorded.machine.get(key) != now.machine.get(key):
            found.append(f"machine {key} {recorded.machine.get(key)}, here {now.machine.get(key)}")
    return found


def records(recorded: tuple[Store, Ref], rebuilt: tuple[Store, Ref]) -> tuple[str, ...]:
    """Names of the fields and payload files in which two records of one kind differ."""
    one, other = _body(*recorded), _body(*rebuilt)
    payload, made = one.pop("payload", {}), other.pop("payload", {})
    fields = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    files = [name for name in sorted({*payload, *made}) if payload.get(name) != made.get(name)]
    return (*fields, *(f"payload {name}" for name in files))


def notebooks(
    recorded: Path, rebuilt: Path, places: dict[str, str]
) -> tuple[tuple[CellDifference, ...], str]:
    """Cells whose outputs differ, or why that cannot be told.

    Args:
        recorded: The executed notebook of the recorded run.
        rebuilt: The one just executed.
        places: Text that names a place in either, to what it stands for: where a step ran is not
            what it did.
    """
    if not rebuilt.exists():
        return (), "no notebook was run to make it, so no cell can be named"
    if not recorded.exists():
        return (), "the recorded run's executed notebook is gone, so no cell can be named"
    pairs = zip(_cells(recorded), _cells(rebuilt), strict=False)
    found = []
    for number, (one, other) in enumerate(pairs, start=1):
        before, now = _shown(one, places), _shown(other, places)
        if before != now:
            source = one["source"] if isinstance(one["source"], str) else "".join(one["source"])
            where = _first_difference(before, now)
            found.append(
                CellDifference(number=number, source=source, recorded=where[0], rebuilt=where[1])
            )
    return tuple(found), "" if found else "what the cells print and draw is the same in both runs"


def _versions(environment: Environment) -> dict[str, str]:
    return {
        name: version
        for name, _, version in (entry.partition("==") for entry in environment.distributions)
    }


def _body(store: Store, ref: Ref) -> Json:
    body: Json = json.loads((store.folder(ref) / "record.json").read_bytes())
    return body


def _cells(notebook: Path) -> list[Json]:
    """Code cells but the one with the run's parameters, so that numbers are the author's."""
    content = json.loads(notebook.read_bytes())
    return [
        cell
        for cell in content["cells"]
        if cell["cell_type"] == "code"
        and "injected-parameters" not in cell["metadata"].get("tags", [])
    ]


def _shown(cell: Json, places: dict[str, str]) -> list[str]:
    """What a cell showed, without what every run shows otherwise.

    What it writes to standard error is left out: warnings and bars depend on who watches.
    """
    printed: list[str] = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            if output["name"] == "stdout":
                printed += _text(output["text"]).splitlines()
        elif output["output_type"] == "error":
            printed.append(f"{output['ename']}: {output['evalue']}")
        else:
            for kind, value in sorted(output.get("data", {}).items()):
                text = _text(value)
                picture = kind.startswith("image/")
                printed.append(f"{kind} {digest.of_bytes(text.encode())[:12]}" if picture else text)
    return [_neutral(line, places) for line in printed]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "".join(value) if isinstance(value, list) else json.dumps(value, sort_keys=True)


def _neutral(line: str, places: dict[str, str]) -> str:
    for place in sorted(places, key=len, reverse=True):
        line = line.replace(place, places[place])
    return _ADDRESS.sub("at 0x…", line)


def _first_difference(before: list[str], now: list[str]) -> tuple[str, str]:
    for one, other in zip(before, now, strict=False):
        if one != other:
            return one[:_SHOWN], other[:_SHOWN]
    at = min(len(before), len(now))
    return (
        before[at][:_SHOWN] if at < len(before) else "nothing",
        now[at][:_SHOWN] if at < len(now) else "nothing",
    )
