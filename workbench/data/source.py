"""The contents of a source folder as a reader finds them, before they are checked.

A file ``drives.json`` beside a source of any format adds what annotations cannot say; its values
override theirs. The fields of a drive are those of `Drive`:

    {"drives": [{"id": "DRIVE", "vehicle_type": "truck", "camera_height_m": 2.3, …}],
     "frames": {"images/a.jpg": {"drive": "DRIVE", "index": 4, "timestamp_us": 133333,
                                 "conditions": {"light": "night"}, "events": ["cut_in"]}}}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from workbench.core import digest
from workbench.core.errors import DataError
from workbench.core.text import counted, natural_key
from workbench.data.files import read_json, relative_name
from workbench.data.names import parse_file_name, parse_names_with_fraction
from workbench.records.base import FrozenModel
from workbench.records.frames import Conditions, Drive
from workbench.records.types import Quarantined

__all__ = ()

_DRIVES_FILE = "drives.json"


@dataclass(frozen=True)
class SourceBox:
    """A box of a source.

    Attributes:
        corners: x0, y0, x1, y1; continuous, origin top left, in pixels, or in fractions of the
            image if ``normalised``.
        detail: Where in the source it was read.
    """

    name: str
    corners: tuple[float, float, float, float]
    detail: str
    normalised: bool = False
    occluded: float | None = None
    truncated: float | None = None
    ignore: bool = False
    track: str | None = None


@dataclass(frozen=True)
class SourceFrame:
    """An image of a source.

    Attributes:
        name: Path below the source, with slashes.
        counter: Frame number in the file name, if there is one.
        clock: Unit of the time in the file name (s, ms, µs, ns, date), if there is one.
        condition_words: Kind (``light`` or ``weather``) and word of the source, untranslated.
        size: Width and height according to the annotation, in pixels.
        annotated: Whether an annotation says what is in it, be it nothing.
        failed: Number of its annotations that cannot be read.
    """

    file: Path
    name: str
    drive: str
    index: int
    counter: int | None = None
    timestamp_us: int | None = None
    clock: str | None = None
    conditions: Conditions = field(default_factory=Conditions)
    condition_words: tuple[tuple[str, str], ...] = ()
    events: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    boxes: tuple[SourceBox, ...] = ()
    annotated: bool = True
    failed: int = 0


@dataclass(frozen=True)
class Source:
    """What a reader found.

    Attributes:
        problems: Inputs that it could not read.
        notes: What it did not look at, or had to assume.
    """

    format: str
    root: Path
    frames: tuple[SourceFrame, ...]
    drives: dict[str, Drive] = field(default_factory=dict)
    problems: tuple[Quarantined, ...] = ()
    notes: tuple[str, ...] = ()


def frame_of_file(
    file: Path,
    root: Path,
    boxes: tuple[SourceBox, ...] | None = None,
    size: tuple[int, int] | None = None,
    failed: int = 0,
) -> SourceFrame:
    """The frame of an image by its file name; ``boxes`` is None where it has no annotation file."""
    name = relative_name(file, root)
    parts = parse_file_name(name)
    return SourceFrame(
        file=file,
        name=name,
        drive=parts.drive,
        index=parts.index,
        counter=parts.counter,
        timestamp_us=parts.timestamp_us,
        clock=parts.clock,
        size=size,
        boxes=boxes or (),
        annotated=boxes is not None,
        failed=failed,
    )


def left_out_text(boxes: Iterable[SourceBox]) -> str:
    """A sentence that names boxes that are left out with their image; empty without boxes."""
    named = [f"{box.detail} ({box.name})" for box in boxes]
    if not named:
        return ""
    return f"; {counted(len(named), 'box', 'boxes')} left out with it: {', '.join(named)}"


def mislabelled(file: str, detail: str) -> Quarantined:
    """A line of the quarantine for an annotation that is wrong or cannot be read."""
    return Quarantined(file=file, reason="mislabelled", detail=detail)


def number_frames(frames: tuple[SourceFrame, ...]) -> tuple[SourceFrame, ...]:
    """Frames with their position in the drive as index, where their names do not count them.

    These are names that are times, and the names of a drive of which several have one number, such
    as ``000019_leftImg8bit.png``: they are put in natural order, 2 before 10.
    """
    frames = _with_fractions(frames)
    positions: dict[str, int] = {}
    numbered: dict[str, int] = {}
    timed = [frame for frame in frames if frame.clock is not None]
    for frame in sorted(timed, key=lambda frame: (frame.timestamp_us or 0, frame.name)):
        numbered[frame.name] = positions.get(frame.drive, 0)
        positions[frame.drive] = numbered[frame.name] + 1
    by_drive: dict[str, list[SourceFrame]] = defaultdict(list)
    for frame in frames:
        if frame.clock is None:
            by_drive[frame.drive].append(frame)
    for drive in by_drive.values():
        if len({frame.index for frame in drive}) < len(drive) and all(map(_named_only, drive)):
            in_order = sorted(drive, key=lambda frame: natural_key(frame.name))
            numbered |= {frame.name: position for position, frame in enumerate(in_order)}
    return tuple(
        replace(frame, index=numbered[frame.name]) if frame.name in numbered else frame
        for frame in frames
    )


def _named_only(frame: SourceFrame) -> bool:
    """Whether nothing but the frame's name gave its index, and that is no frame number."""
    parts = parse_file_name(frame.name)
    return frame.timestamp_us is None and frame.counter is None and parts.index == frame.index


def _with_fractions(frames: tuple[SourceFrame, ...]) -> tuple[SourceFrame, ...]:
    """Frames whose names turn out to be times once all are seen."""
    untimed = (frame for frame in frames if frame.timestamp_us is None)
    by_name = {frame.name for frame in untimed if frame.drive == parse_file_name(frame.name).drive}
    found = parse_names_with_fraction(by_name)
    if not found:
        return frames
    return tuple(
        replace(
            frame,
            drive=parts.drive,
            counter=None,
            timestamp_us=parts.timestamp_us,
            clock=parts.clock,
        )
        if (parts := found.get(frame.name)) is not None
        else frame
        for frame in frames
    )


class _FrameNotes(FrozenModel):
    drive: str | None = None
    index: int | None = None
    timestamp_us: int | None = None
    conditions: Conditions | None = None
    events: tuple[str, ...] | None = None


class _DrivesFile(FrozenModel):
    # Later versions may have more fields.
    model_config = ConfigDict(frozen=True, extra="ignore")

    drives: tuple[Drive, ...] = ()
    frames: dict[str, _FrameNotes] = {}


def apply_drives_file(source: Source) -> Source:
    """``source`` with the values of its ``drives.json``, if there is one.

    Raises:
        DataError: The file is invalid.
    """
    path = source.root / _DRIVES_FILE
    if not path.exists():
        return source
    try:
        notes = _DrivesFile.model_validate(read_json(path))
        for drive in notes.drives:
            digest.canonical_json(drive.model_dump(mode="json"))  # no infinity, no half characters
    except (ValueError, DataError) as error:
        what = _first_validation_error(error) if isinstance(error, ValidationError) else str(error)
        raise DataError(
            f"invalid {_DRIVES_FILE}: {what}",
            where=path,
            hint="The fields of a drive are listed in workbench/records/frames.py",
        ) from error
    drives = {**source.drives, **{drive.id: drive for drive in notes.drives}}
    frames = tuple(_with_notes(frame, notes.frames.get(frame.name)) for frame in source.frames)
    return replace(source, drives=drives, frames=frames)


def _with_notes(frame: SourceFrame, notes: _FrameNotes | None) -> SourceFrame:
    if notes is None:
        return frame
    values = {name: getattr(notes, name) for name in notes.model_fields_set}
    return replace(frame, **{name: value for name, value in values.items() if value is not None})


def _first_validation_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
