"""Frames that vehicles sent back: ``VEHICLE/NUMBER.jpg`` with what the vehicle says beside it.

The folder ``frames`` of a telemetry table. Why a frame came back is one of its events:
``campaign:NAME``, ``shadow:disagreement`` or ``shadow:random``; the vehicle is the drive's. Boxes
in it are a model's and no labels: they are left there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workbench.core.parsing import UNREADABLE
from workbench.data.files import find_files, read_json, relative_name
from workbench.data.source import Source, SourceFrame
from workbench.records.frames import Conditions, Drive
from workbench.records.types import Quarantined

__all__ = ()


def is_returned(source: Path) -> bool:
    """Whether ``source`` has frames that vehicles sent back."""
    first = next(iter(sorted(source.glob("*/[0-9]*.json"))), None) if source.is_dir() else None
    try:
        return first is not None and {"vehicle", "sequence", "sha256"} <= read_json(first).keys()
    except UNREADABLE:
        return False


def read_returned(source: Path) -> Source:
    """Read the frames; one without its image, or that says what no vehicle says, is a problem."""
    frames: list[SourceFrame] = []
    problems: list[Quarantined] = []
    drives: dict[str, Drive] = {}
    for path in find_files(source, [".json"]):
        file, name = path.with_suffix(".jpg"), relative_name(path.with_suffix(".jpg"), source)
        try:
            about: dict[str, Any] = read_json(path)
            drive = Drive(
                id=f"{about['vehicle']}/{about['drive']}",
                vehicle=str(about["vehicle"]),
                simulated=about.get("evidence") == "simulated",
            )
            conditions = Conditions.model_validate(about.get("conditions", {}))
            index = int(about["sequence"])
        except (*UNREADABLE, ValidationError) as error:
            detail = f"what is said about it cannot be read: {error}"
            problems.append(Quarantined(file=name, reason="unreadable", detail=detail[:300]))
            continue
        if not file.is_file():
            detail = f"named by {relative_name(path, source)}"
            problems.append(Quarantined(file=name, reason="missing", detail=detail))
            continue
        why = f"campaign:{about['name']}" if "campaign" in about else f"shadow:{about.get('arm')}"
        drives[drive.id] = drive
        frames.append(
            SourceFrame(
                file=file, name=name, drive=drive.id, index=index, conditions=conditions,
                events=(why,), annotated=False,
            )
        )  # fmt: skip
    return Source("returned", source, tuple(frames), drives, tuple(problems))
