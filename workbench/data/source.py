"""What a reader finds in a source, before any of it has been believed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.records.frames import UNKNOWN, Conditions, Drive
from workbench.records.types import Quarantined

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

# Fewer digits number photos, more of them are clocks. Only what lies between counts frames.
_COUNTED = re.compile(r"^(?P<drive>.*?)[_\-.]?(?:frame|f)?(?<!\d)(?P<counter>\d{4,9})$")
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


def parse_name(name: str) -> NameParts:
    """Read ``Seq05VD_f04530.jpg`` as frame 4530 of drive ``Seq05VD``.

    Without a name before the counter, the folder is the drive, and without a folder that says
    anything it is ``unknown``: never the name of the source itself, which may be moved.
    """
    path = Path(name)
    folder = "/".join(part for part in path.parts[:-1] if not _says_nothing(part))
    counted = _COUNTED.match(path.stem)
    if counted:
        number = int(counted["counter"])
        prefix = counted["drive"]
        drive = "/".join(part for part in (folder, prefix) if part)
        return NameParts(drive or UNKNOWN, number, number)
    numbered = _LAST_NUMBER.search(path.stem)
    return NameParts(folder or UNKNOWN, int(numbered[1]) if numbered else 0, None)


def _says_nothing(folder: str) -> bool:
    return folder in _PLAIN_FOLDERS or re.fullmatch(r"image_\d", folder) is not None


# Names that tell how a source is laid out, not what was driven.
_PLAIN_FOLDERS = frozenset(
    {"images", "image", "img", "data", "train", "val", "test", "training", "testing", "JPEGImages"}
)


def images_below(folder: Path) -> list[Path]:
    """Every file below ``folder`` with an image's suffix, hidden ones left out, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def relative(file: Path, root: Path) -> str:
    """``file`` below ``root`` with slashes; the bare name when it lies elsewhere."""
    try:
        return file.relative_to(root).as_posix()
    except ValueError:
        return file.name
