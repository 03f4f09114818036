"""Decode images and store them in the media folder.

Runs in worker processes, so it imports little.
"""

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
from workbench.core.errors import DataError
from workbench.core.parsing import read_regular

__all__ = ["open_rgb"]

# The suffix comes from the content: a PNG named .jpg is stored as .png.
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tiff"}
_FORMATS = tuple(_SUFFIXES)
_MAX_IMAGE_BYTES = 512 * 2**20
# Pillow's name for a JPEG with further images behind it, as many cameras write it.
_SUFFIXES["MPO"] = ".jpg"

_STARTS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG", "BMP": b"BM", "WebP": b"RIFF"}
_ORIENTATION = 0x0112
_GPS_IFD = 0x8825
_LATITUDE, _LONGITUDE = (1, 2), (3, 4)  # tags of the hemisphere and of the degrees


@dataclass(frozen=True)
class StoredImage:
    """An image in the media folder.

    Attributes:
        id: SHA-256 of the file.
        width: Pixels.
        height: Pixels.
        position: Latitude and longitude from EXIF, in degrees (WGS 84).
        brightest: Largest value of a 16-bit image.
        inside: Images in the file, as pages or an animation; decoders take the first.
    """

    id: str
    width: int
    height: int
    suffix: str
    position: tuple[float, float] | None = None
    brightest: int | None = None
    inside: int = 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB; of 16-bit grey values the high byte, where Pillow clips to white."""
    if image.mode in ("F", "I;32", "I") and not _fits_16_bits(image):
        raise ValueError("its values need more than 16 bits: convert it to 8 or 16")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    import numpy as np

    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")


def open_rgb(path: Path) -> Image.Image:
    """Decode an image file as 8-bit RGB; of 16-bit grey values the high byte.

    Raises:
        OSError: The file is missing or not a readable image.
    """
    with Image.open(path) as image:
        return _to_rgb(image)


def open_media(path: Path, frame: str) -> Image.Image:
    """Decode a frame's image like `open_rgb`. Its bytes are those that were ingested.

    Args:
        path: The image in the media folder.
        frame: Id of the frame.

    Raises:
        DataError: The image is missing, has other bytes, or cannot be decoded.
    """
    from workbench.records.integrity import read_media

    data = read_media(path, frame)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _to_rgb(image)
    except Exception as error:  # decoders raise any exception on damaged files
        raise DataError(f"image cannot be decoded: {error}", where=path) from error


@dataclass(frozen=True)
class RejectedImage:
    """An image that cannot be used; ``reason`` is one of `Quarantined`'s."""

    reason: str
    detail: str


def _store_image(
    file: str, media: str, size: tuple[int, int] | None
) -> StoredImage | RejectedImage:
    """Decode ``file`` completely and copy its bytes to ``media``, named by their digest.

    All pixels are decoded, because a truncated file has a valid header. An image with an EXIF
    rotation is rejected: browsers apply it and decoders do not, so boxes would be ambiguous.

    Args:
        media: The media folder.
        size: Width and height according to the annotation, in pixels.
    """
    try:
        data = read_regular(Path(file), max_bytes=_MAX_IMAGE_BYTES)
    except FileNotFoundError:
        return RejectedImage("missing", "no such file")
    except (OSError, ValueError) as error:
        return RejectedImage("unreadable", getattr(error, "strerror", None) or str(error))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they do not name the file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                image.load()
                inside = _images_inside(image)
                if image.mode in ("F", "I;32", "I"):
                    _to_rgb(image)  # it may not fit
                width, height, suffix = *image.size, _SUFFIXES[str(image.format)]
                wide = image.mode.startswith("I")
                brightest = int(str(image.getextrema()[1])) if wide else None
                # Parsing EXIF costs time even if there is none.
                tagged = "exif" in image.info or suffix == ".tiff"
                turned = orientation(image) if tagged else 1
                position = _gps_position(image) if tagged else None
    except Exception as error:  # decoders raise any exception on damaged files
        return RejectedImage("unreadable", _decode_error_text(error, data))
    if turned != 1:
        hint = f"EXIF orientation {turned}: save it upright and without the tag"
        return RejectedImage("mislabelled", hint)
    if size is not None and size != (width, height):
        claim = f"annotated as {size[0]}x{size[1]}, the image is {width}x{height}"
        return RejectedImage("mislabelled", claim)
    picture = StoredImage(digest.of_bytes(data), width, height, suffix, position, brightest, inside)
    _write_once(data, Path(media) / picture.id[:2] / f"{picture.id}{picture.suffix}")
    return picture


def orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where it is missing or unreadable.

    1 is upright and 2 to 8 are turned or mirrored. Other numbers mean nothing: programs differ in
    what they make of them, so they are not taken for upright.
    """
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that is damaged does not make the image unusable
        return 1
    return value if isinstance(value, int) and value != 0 else 1


def _images_inside(image: Image.Image) -> int:
    """Frames of an animation or pages; the previews that cameras put into a JPEG do not count."""
    return 1 if image.format in ("JPEG", "MPO") else int(getattr(image, "n_frames", 1))


def _fits_16_bits(image: Image.Image) -> bool:
    return image.mode != "F" and float(str(image.getextrema()[1])) < 2**16


def store_images(
    batch: list[tuple[str, tuple[int, int] | None]], media: str
) -> list[StoredImage | RejectedImage]:
    """Store several images; the task of a worker process."""
    return [_store_image(file, media, size) for file, size in batch]


def _gps_position(image: Image.Image) -> tuple[float, float] | None:
    """Latitude and longitude from EXIF; None if they are missing or invalid."""
    position = []
    try:
        gps: dict[int, Any] = image.getexif().get_ifd(_GPS_IFD)
    except Exception:  # see `orientation`
        return None
    for (letter, parts), limit in ((_LATITUDE, 90), (_LONGITUDE, 180)):
        try:
            degrees, minutes, seconds = (float(part) for part in gps[parts])
            hemisphere = str(gps[letter])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        value = degrees + minutes / 60 + seconds / 3600
        if not 0 <= value <= limit or hemisphere not in "NSEW":
            return None
        position.append(round(-value if hemisphere in "SW" else value, 7))
    return (position[0], position[1])


def _decode_error_text(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if type(error).__name__ == "UnidentifiedImageError":
        kind = next((name for name, start in _STARTS.items() if data.startswith(start)), None)
        return f"a damaged {kind} image" if kind else "not an image in a supported format"
    return str(error) or type(error).__name__


def _write_once(data: bytes, target: Path) -> None:
    """Write ``data`` unless the file has these bytes already.

    Not synced: the next ingest writes a file again that a power cut damaged.
    """
    with contextlib.suppress(OSError):
        if target.stat().st_size == len(data) and target.read_bytes() == data:
            return
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, 0o644)
            stream.write(data)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
