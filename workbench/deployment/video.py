"""Video files: frames in order, and frames with boxes written as a video."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from PIL import Image

from workbench.core.errors import DataError, ParameterError
from workbench.detection.preprocessing import Pixels

__all__ = ()

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm"})
_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
FOLDER_FPS = 10.0
"""Frames per second of a video that is written from images without a time."""


def count_frames(path: Path) -> int:
    """Frames that can be decoded; what a file's header says is often wrong.

    Raises:
        ParameterError: The file is no video, or has no frames.
    """
    import cv2

    video = cv2.VideoCapture(str(path))
    count = 0
    while video.grab():
        count += 1
    video.release()
    if not count:
        raise ParameterError(
            "no frame of the video can be decoded",
            where=path,
            hint=f"Formats: {', '.join(sorted(VIDEO_SUFFIXES))}",
        )
    return count


def frames_per_second(path: Path) -> float:
    """As the file says; `FOLDER_FPS` where it says nothing."""
    import cv2

    video = cv2.VideoCapture(str(path))
    rate = float(video.get(cv2.CAP_PROP_FPS))
    video.release()
    return rate if 0 < rate <= 240 else FOLDER_FPS


class VideoReader:
    """Frames of videos, each video read once from its first to its last frame."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._next = 0
        self._lock = threading.Lock()

    def read(self, path: Path, position: int) -> Pixels:
        """The frame at a position, RGB uint8 ``[h, w, 3]``, turned as the video says.

        Raises:
            DataError: It cannot be decoded.
        """
        import cv2

        with self._lock:
            if path != self._path or position < self._next:
                self._video = cv2.VideoCapture(str(path))
                self._path, self._next = path, 0
            while self._next < position and self._video.grab():
                self._next += 1
            found, image = self._video.read()
            self._next += 1
        if not found:
            raise DataError(f"frame {position} of the video cannot be decoded", where=path)
        return np.ascontiguousarray(image[:, :, ::-1])


class VideoWriter:
    """Writes a video of the size of its first frame; others are fitted into it.

    Args:
        path: Ends on ``.mp4``, ``.webm`` or ``.avi``.
        rate: Frames per second.

    Raises:
        ParameterError: Another suffix.
    """

    def __init__(self, path: Path, rate: float) -> None:
        if path.suffix.lower() not in _CODECS:
            raise ParameterError(
                f"cannot write a video {path.suffix or 'without a suffix'}",
                where=path,
                hint=f"Use one of {', '.join(sorted(_CODECS))}",
            )
        self._path, self._rate = path, rate
        self._size = (0, 0)

    def write(self, image: Image.Image) -> None:
        """Append a frame.

        Raises:
            ParameterError: The file cannot be written.
        """
        import cv2

        if not any(self._size):
            # Encoders want even sides.
            self._size = (image.width // 2 * 2, image.height // 2 * 2)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*_CODECS[self._path.suffix.lower()])
            self._video = cv2.VideoWriter(str(self._path), code, self._rate, self._size)
            if not self._video.isOpened():
                raise ParameterError("the video cannot be written", where=self._path)
        if image.size != self._size:
            image = _fitted(image, self._size)
        self._video.write(np.asarray(image.convert("RGB"))[:, :, ::-1])

    def close(self) -> None:
        """Finish the file; without this, players refuse it."""
        if any(self._size):
            self._video.release()


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image inside a black one of another size."""
    scale = min(size[0] / image.width, size[1] / image.height)
    small = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    page = Image.new("RGB", size)
    page.paste(small, ((size[0] - small.width) // 2, (size[1] - small.height) // 2))
    return page
