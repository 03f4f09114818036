"""Decode an image and store it in the media folder. Runs in worker processes, so it imports little."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from workbench.core import digest

# The suffix comes from the content: a PNG called .jpg is stored as what it is.
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tiff"}

_ORIENTATION = 0x0112
_GPS_IFD = 0x8825
_LATITUDE, _LONGITUDE = (1, 2), (3, 4)  # each a hemisphere's letter, then degrees in three parts


@dataclass(frozen=True)
class StoredImage:
    """An image that is in the media folder now: SHA-256 of its file, size in pixels, suffix.

    ``position`` is the latitude and longitude of its EXIF, in degrees (WGS 84).
    """

    id: str
    width: int
    height: int
    suffix: str
    position: tuple[float, float] | None = None


@dataclass(frozen=True)
class RejectedImage:
    reason: str
    detail: str


def store_image(file: str, media: str, size: tuple[int, int] | None) -> StoredImage | RejectedImage:
    """Decode ``file`` whole and copy its bytes to ``media`` under their digest.

    Every pixel is decoded, because a truncated file has a perfect header. Damage that leaves
    the compressed stream well-formed cannot be seen by any decoder.

    An image whose EXIF says that it lies rotated is refused: browsers turn it and decoders do
    not, so nobody could say which of the two its boxes are meant in.

    Args:
        size: (width, height) that the annotation claims.
    """
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError:
        return RejectedImage("missing", "no such file")
    except OSError as error:
        return RejectedImage("unreadable", error.strerror or str(error))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=tuple(_SUFFIXES)) as image:
                image.load()
                width, height, kind = *image.size, str(image.format)
                # Most frames carry no EXIF, and asking for it costs a parse all the same.
                tagged = "exif" in image.info or kind == "TIFF"
                turned = image.getexif().get(_ORIENTATION, 1) if tagged else 1
                position = _gps_position(image.getexif().get_ifd(_GPS_IFD)) if tagged else None
    except Exception as error:  # decoders raise anything on hostile bytes; all mean the same here
        return RejectedImage("unreadable", _decode_error_text(error, data))
    if turned not in (0, 1):
        hint = f"EXIF orientation {turned}: save it upright and without the tag"
        return RejectedImage("mislabelled", hint)
    if size is not None and size != (width, height):
        claim = f"annotated as {size[0]}x{size[1]}, the image is {width}x{height}"
        return RejectedImage("mislabelled", claim)
    picture = StoredImage(digest.of_bytes(data), width, height, _SUFFIXES[kind], position)
    _write_once(data, Path(media) / picture.id[:2] / f"{picture.id}{picture.suffix}")
    return picture


def store_images(
    batch: list[tuple[str, tuple[int, int] | None]], media: str
) -> list[StoredImage | RejectedImage]:
    """A chunk of work for one process."""
    return [store_image(file, media, size) for file, size in batch]


def _gps_position(gps: dict[int, Any]) -> tuple[float, float] | None:
    """Degrees from EXIF's degrees, minutes and seconds; None where they make no sense."""
    found = []
    for (letter, parts), furthest in ((_LATITUDE, 90), (_LONGITUDE, 180)):
        try:
            degrees, minutes, seconds = (float(part) for part in gps[parts])
            hemisphere = str(gps[letter])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        value = degrees + minutes / 60 + seconds / 3600
        if not 0 <= value <= furthest or hemisphere not in "NSEW":
            return None
        found.append(round(-value if hemisphere in "SW" else value, 7))
    return (found[0], found[1])


def _decode_error_text(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image of a kind that can be read"
    return str(error) or type(error).__name__


def _write_once(data: bytes, target: Path) -> None:
    """Write ``data`` unless it is there already.

    No sync: bytes lost to a power cut show as a wrong size and are written again by the next
    ingest, and every reader can check them against their name.
    """
    with contextlib.suppress(FileNotFoundError):
        if target.stat().st_size == len(data):
            return
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".taking-")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, 0o644)
            stream.write(data)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
