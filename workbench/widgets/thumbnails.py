"""Images as the page wants them: thumbnails kept on disk, and whole images."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from workbench.core.errors import DataError
from workbench.core.workspace import Workspace
from workbench.data.images import open_media
from workbench.records.integrity import read_media

__all__ = ["Thumbnails"]

_WIDTH_PX, _QUALITY = 320, 82
_SHOWN_AS_THEY_ARE = (".jpg", ".png", ".webp")
"""Formats that browsers decode themselves; others are sent as JPEG."""


class Thumbnails:
    """JPEGs of frames, 320 pixels wide, made once and kept in the workspace.

    They are named by the frame's digest, so they never grow stale, and may be deleted.

    Args:
        workspace: Keeps them in ``cache/thumbnails``; without one nothing is kept.
    """

    def __init__(self, workspace: Workspace | None) -> None:
        self._folder = workspace.root / "cache" / "thumbnails" if workspace else None
        # Decoding releases Python's lock.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="thumbnails")

    def get(self, images: Sequence[tuple[Path, str]]) -> list[bytes | DataError]:
        """A thumbnail of each image, or why there is none.

        Args:
            images: File in the media folder, and id of its frame.
        """
        return list(self._threads.map(lambda one: self._one(*one), images))

    def _one(self, path: Path, frame: str) -> bytes | DataError:
        kept = self._folder and self._folder / frame[:2] / f"{frame}-{_WIDTH_PX}.jpg"
        if kept:
            with contextlib.suppress(OSError):
                if data := kept.read_bytes():  # empty after a power cut: files are not synced
                    return data
        try:
            data = _thumbnail(path, frame)
        except DataError as error:
            return error
        if kept:
            with contextlib.suppress(OSError):  # a full disk costs the cache, not the picture
                kept.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=kept.parent, prefix=".writing-")
                with os.fdopen(handle, "wb") as stream:
                    stream.write(data)
                Path(name).replace(kept)
        return data


def whole_image(path: Path, frame: str) -> bytes:
    """An image in a format that browsers show: the file itself where possible.

    Raises:
        DataError: The image is missing, has other bytes, or cannot be decoded.
    """
    if path.suffix in _SHOWN_AS_THEY_ARE:
        data = read_media(path, frame)
        with _undecodable_is_skipped(), Image.open(io.BytesIO(data)) as image:
            if image.mode in ("RGB", "L", "P", "RGBA"):
                return data
    return _jpeg(open_media(path, frame), 92)


def _thumbnail(path: Path, frame: str) -> bytes:
    data = read_media(path, frame)
    with _undecodable_is_skipped(), Image.open(io.BytesIO(data)) as image:
        if image.mode in ("RGB", "L"):
            # A JPEG is decoded at a fraction of its size.
            image.draft("RGB", _thumbnail_size(image))
            return _shrink(image.convert("RGB"))
    return _shrink(open_media(path, frame))


def _undecodable_is_skipped() -> contextlib.suppress:
    # `open_media`, which comes after, says what is wrong.
    return contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def _thumbnail_size(image: Image.Image) -> tuple[int, int]:
    return _WIDTH_PX, max(1, round(image.height * _WIDTH_PX / image.width))


def _shrink(image: Image.Image) -> bytes:
    small = image.resize(_thumbnail_size(image), Image.Resampling.BILINEAR, reducing_gap=2)
    return _jpeg(small, _QUALITY)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()
