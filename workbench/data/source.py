"""The contents of a source folder as a reader finds them, before they are checked.

A file ``drives.json`` beside a source of any format adds what annotations cannot say; its values
override theirs. The fields of a drive are those of `Drive`:

    {"drives": [{"id": "DRIVE", "vehicle_type": "truck", "camera_height_m": 2.3, …}],
     "frames": {"images/a.jpg": {"drive": "DRIVE", "index": 4, "timestamp_us": 133333,
                                 "conditions": {"light": "night"}, "events": ["cut_in"]}}}
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from workbench.core.errors import DataError
from workbench.records.base import FrozenModel
from workbench.records.frames import UNKNOWN, Conditions, Drive
from workbench.records.types import Quarantined

__all__ = ["Source", "SourceBox", "SourceFrame"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

# Numbers with fewer digits count photos, with more digits they are times.
_FRAME_COUNTER = re.compile(r"^(?P<drive>.*?)[_\-.]?(?:frame|f)?(?<!\d)(?P<counter>\d{4,9})$")
_LAST_NUMBER = re.compile(r"(\d{1,9})$")

# Folders that say nothing about the drive.
_LAYOUT_FOLDERS = frozenset(
    {"images", "image", "img", "data", "train", "val", "test", "training", "testing", "JPEGImages"}
)

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
        size: Width and height according to the annotation, in pixels.
    """

    file: Path
    name: str
    drive: str
    index: int
    counter: int | None = None
    timestamp_us: int | None = None
    conditions: Conditions = field(default_factory=Conditions)
    events: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    boxes: tuple[SourceBox, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a reader found; ``problems`` are inputs that it could not read."""

    format: str
    root: Path
    frames: tuple[SourceFrame, ...]
    drives: dict[str, Drive] = field(default_factory=dict)
    problems: tuple[Quarantined, ...] = ()


@dataclass(frozen=True)
class NameParts:
    """What a file name says.

    ``counter`` is the frame number, and None where the number does not count frames.
    """

    drive: str
    index: int
    counter: int | None


def parse_file_name(name: str) -> NameParts:
    """Parse ``Seq05VD_f04530.jpg`` as frame 4530 of drive ``Seq05VD``.

    Without a name before the number, the drive is the folder, and without a meaningful folder it is
    ``unknown``. It is never the name of the source, which may be moved.
    """
    path = Path(name)
    folder = "/".join(part for part in path.parts[:-1] if not _is_layout_folder(part))
    counted = _FRAME_COUNTER.match(path.stem)
    if counted:
        number = int(counted["counter"])
        prefix = counted["drive"]
        drive = "/".join(part for part in (folder, prefix) if part)
        return NameParts(drive or UNKNOWN, number, number)
    numbered = _LAST_NUMBER.search(path.stem)
    return NameParts(folder or UNKNOWN, int(numbered[1]) if numbered else 0, None)


def _is_layout_folder(folder: str) -> bool:
    return folder in _LAYOUT_FOLDERS or re.fullmatch(r"image_\d", folder) is not None


def frame_of_file(
    file: Path,
    root: Path,
    boxes: tuple[SourceBox, ...] = (),
    size: tuple[int, int] | None = None,
) -> SourceFrame:
    """The frame of an image of which only the file name says anything."""
    name = relative_name(file, root)
    parts = parse_file_name(name)
    return SourceFrame(
        file=file,
        name=name,
        drive=parts.drive,
        index=parts.index,
        counter=parts.counter,
        size=size,
        boxes=boxes,
    )


def find_images(folder: Path) -> list[Path]:
    """All image files below ``folder`` except hidden ones, sorted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def relative_name(file: Path, root: Path) -> str:
    """Path of ``file`` below ``root``, with slashes; its name if it is elsewhere."""
    try:
        return file.relative_to(root).as_posix()
    except ValueError:
        return file.name


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
        notes = _DrivesFile.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
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
