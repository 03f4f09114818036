"""What a reader finds in a source, and what ``drives.json`` adds to it.

    {"drives": [{"id": "DRIVE", "vehicle_type": "truck", "camera_height_m": 2.3, …}],
     "frames": {"images/a.jpg": {"drive": "DRIVE", "index": 4, "timestamp_us": 133333,
                                 "conditions": {"light": "night"}, "events": ["cut_in"]}}}

``drives.json`` lies beside a source of any format; the fields of a drive are those of `Drive`.
Its values override the annotations.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from workbench.core.errors import DataError
from workbench.records.base import FrozenModel
from workbench.records.frames import UNKNOWN, Conditions, Drive
from workbench.records.types import Quarantined

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

# Fewer digits number photos, more of them are clocks. Only what lies between counts frames.
_FRAME_COUNTER = re.compile(r"^(?P<drive>.*?)[_\-.]?(?:frame|f)?(?<!\d)(?P<counter>\d{4,9})$")
_LAST_NUMBER = re.compile(r"(\d{1,9})$")


@dataclass(frozen=True)
class SourceBox:
    """A box as the source tells it.

    ``corners`` are (x0, y0, x1, y1), continuous, origin top left: pixels, or fractions of the
    image when ``normalised``. ``detail`` says where in the source it stands.
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
    """An image as the source tells it; ``name`` is its path below the source, with slashes.

    ``size`` is the (width, height) that the annotation claims. ``counter`` is the frame number
    in the file name, where there is one.
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
    """All that a reader found. ``problems`` are inputs that it could not make sense of."""

    format: str
    root: Path
    frames: tuple[SourceFrame, ...]
    drives: dict[str, Drive] = field(default_factory=dict)
    problems: tuple[Quarantined, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NameParts:
    """What a file name says: its drive, its place in it, and whether that counts frames."""

    drive: str
    index: int
    counter: int | None


def parse_file_name(name: str) -> NameParts:
    """Read ``Seq05VD_f04530.jpg`` as frame 4530 of drive ``Seq05VD``.

    Without a name before the counter, the folder is the drive, and without a folder that says
    anything it is ``unknown``: never the name of the source itself, which may be moved.
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


# Names that tell how a source is laid out, not what was driven.
_LAYOUT_FOLDERS = frozenset(
    {"images", "image", "img", "data", "train", "val", "test", "training", "testing", "JPEGImages"}
)


def find_images(folder: Path) -> list[Path]:
    """Every file below ``folder`` with an image's suffix, hidden ones left out, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def relative_name(file: Path, root: Path) -> str:
    """``file`` below ``root`` with slashes; the bare name when it lies elsewhere."""
    try:
        return file.relative_to(root).as_posix()
    except ValueError:
        return file.name


# ---- ``drives.json``: what the annotations cannot say about a drive and its frames.
#
# {"drives": [{"id": "DRIVE", "vehicle_type": "truck", "camera_height_m": 2.3, …}],
#  "frames": {"images/a.jpg": {"drive": "DRIVE", "index": 4, "timestamp_us": 133333,
#                              "conditions": {"light": "night"}, "events": ["cut_in"]}}}
#
# It lies beside a source of any format; the fields of a drive are those of `Drive`. What it says
# wins over what the annotations say.


DRIVES_FILE = "drives.json"


class _FrameNotes(FrozenModel):
    drive: str | None = None
    index: int | None = None
    timestamp_us: int | None = None
    conditions: Conditions | None = None
    events: tuple[str, ...] | None = None


class _DrivesFile(FrozenModel):
    # Later versions may say more; what is not understood here is no reason to refuse a drive.
    model_config = ConfigDict(frozen=True, extra="ignore")

    drives: tuple[Drive, ...] = ()
    frames: dict[str, _FrameNotes] = {}


def apply_drives_file(source: Source) -> Source:
    """``source`` with what its ``drives.json`` adds; unchanged when there is none.

    Raises:
        DataError: The file is there but says something a drive or frame cannot have.
    """
    path = source.root / DRIVES_FILE
    if not path.exists():
        return source
    try:
        notes = _DrivesFile.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        what = _first_validation_error(error) if isinstance(error, ValidationError) else str(error)
        raise DataError(
            f"the file about the drives cannot be used: {what}",
            where=path,
            hint="The fields of a drive are listed in workbench/records/frames.py",
        ) from error
    drives = {**source.drives, **{drive.id: drive for drive in notes.drives}}
    frames = tuple(_with_notes(frame, notes.frames.get(frame.name)) for frame in source.frames)
    return replace(source, drives=drives, frames=frames)


def _with_notes(frame: SourceFrame, notes: _FrameNotes | None) -> SourceFrame:
    if notes is None:
        return frame
    said = {name: getattr(notes, name) for name in notes.model_fields_set}
    return replace(frame, **{name: value for name, value in said.items() if value is not None})


def _first_validation_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
