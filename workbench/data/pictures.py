"""Takes one image into the media folder. Runs in worker processes, so it imports little."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from workbench import digest

# The suffix comes from the content: a PNG called .jpg is stored as what it is.
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tiff"}

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """An image that is in the media folder now: SHA-256 of its file, size in pixels, suffix."""

    id: str
    width: int
    height: int
    suffix: str


@dataclass(frozen=True)
class Refused:
    reason: str
    detail: str


def admit(file: str, media: str, size: tuple[int, int] | None) -> Picture | Refused:
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
        return Refused("missing", "no such file")
    except OSError as error:
        return Refused("unreadable", error.strerror or str(error))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=tuple(_SUFFIXES)) as image:
                image.load()
                width, height, kind = *image.size, str(image.format)
                # Most frames carry no EXIF, and asking for it costs a parse all the same.
                tagged = "exif" in image.info or kind == "TIFF"
                turned = image.getexif().get(_ORIENTATION, 1) if tagged else 1
    except Exception as error:  # decoders raise anything on hostile bytes; all mean the same here
        return Refused("unreadable", _plain(error, data))
    if turned not in (0, 1):
        hint = f"EXIF orientation {turned}: save it upright and without the tag"
        return Refused("mislabelled", hint)
    if size is not None and size != (width, height):
        claim = f"annotated as {size[0]}x{size[1]}, the image is {width}x{height}"
        return Refused("mislabelled", claim)
    picture = Picture(digest.of_bytes(data), width, height, _SUFFIXES[kind])
    _keep(data, Path(media) / picture.id[:2] / f"{picture.id}{picture.suffix}")
    return picture


def admit_many(
    batch: list[tuple[str, tuple[int, int] | None]], media: str
) -> list[Picture | Refused]:
    """A chunk of work for one process."""
    return [admit(file, media, size) for file, size in batch]


def _plain(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image of a kind that can be read"
    return str(error) or type(error).__name__


def _keep(data: bytes, target: Path) -> None:
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
