"""``drives.json``: what the annotations cannot say about a drive and its frames.

    {"drives": [{"id": "DRIVE", "vehicle_type": "truck", "camera_height_m": 2.3, …}],
     "frames": {"images/a.jpg": {"drive": "DRIVE", "index": 4, "timestamp_us": 133333,
                                 "conditions": {"light": "night"}, "events": ["cut_in"]}}}

It lies beside a source of any format; the fields of a drive are those of `Drive`. What it says
wins over what the annotations say.
"""

from __future__ import annotations

import json
from dataclasses import replace

from pydantic import ConfigDict, ValidationError

from workbench.data.source import Source, SourceFrame
from workbench.errors import DataError
from workbench.records.base import Row
from workbench.records.frames import Conditions, Drive

FILE = "drives.json"


class _FrameNotes(Row):
    drive: str | None = None
    index: int | None = None
    timestamp_us: int | None = None
    conditions: Conditions | None = None
    events: tuple[str, ...] | None = None


class _Notes(Row):
    # Later versions may say more; what is not understood here is no reason to refuse a drive.
    model_config = ConfigDict(frozen=True, extra="ignore")

    drives: tuple[Drive, ...] = ()
    frames: dict[str, _FrameNotes] = {}


def apply(source: Source) -> Source:
    """``source`` with what its ``drives.json`` adds; unchanged when there is none.

    Raises:
        DataError: The file is there but says something a drive or frame cannot have.
    """
    path = source.root / FILE
    if not path.exists():
        return source
    try:
        notes = _Notes.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        what = _first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise DataError(
            f"the file about the drives cannot be used: {what}",
            where=path,
            hint="The fields of a drive are listed in workbench/records/frames.py",
        ) from error
    drives = {**source.drives, **{drive.id: drive for drive in notes.drives}}
    frames = tuple(_noted(frame, notes.frames.get(frame.name)) for frame in source.frames)
    return replace(source, drives=drives, frames=frames)


def _noted(frame: SourceFrame, notes: _FrameNotes | None) -> SourceFrame:
    if notes is None:
        return frame
    said = {name: getattr(notes, name) for name in notes.model_fields_set}
    return replace(frame, **{name: value for name, value in said.items() if value is not None})


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
