"""Readers of source folders in several formats.

A reader opens annotations, never images. What it cannot read becomes a problem with its file and
reason; `workbench.data.ingest` checks the rest. To add a format, write the two functions that
`READERS` and `_DETECTORS` list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.core.errors import DataError, ParameterError
from workbench.data.readers import coco, per_image
from workbench.data.source import Source, apply_drives_file

__all__ = ["READERS", "read_source"]

READERS: dict[str, Callable[[Path], Source]] = {
    "coco": coco.read_coco,
    "kitti": per_image.read_kitti,
    "voc": per_image.read_voc,
    "yolo": per_image.read_yolo,
    "images": per_image.read_images,
}

# Most specific first: any folder can be a folder of images.
_DETECTORS: dict[str, Callable[[Path], bool]] = {
    "coco": coco.is_coco,
    "kitti": per_image.is_kitti,
    "voc": per_image.is_voc,
    "yolo": per_image.is_yolo,
    "images": per_image.is_image_folder,
}


def read_source(source: Path, format: str = "auto") -> Source:  # noqa: A002 - as on the command line
    """Read a source folder, including its ``drives.json``.

    Args:
        format: A key of `READERS`, or ``auto`` to detect it.

    Raises:
        ParameterError: The format or the folder does not exist.
        DataError: The folder has no frames in this format.
    """
    source = source.expanduser()
    if format != "auto" and format not in READERS:
        raise ParameterError(
            "unknown source format", where=format, hint=f"Use auto, {', '.join(READERS)}"
        )
    if not source.exists():
        raise ParameterError("no such source", where=source)
    chosen = _detect_format(source) if format == "auto" else format
    contents = apply_drives_file(READERS[chosen](source))
    if not contents.frames:
        raise DataError(
            f"no frames found in the {chosen} format",
            where=source,
            hint="Name the folder with the images and annotations, or try another --format",
        )
    return contents


def _detect_format(source: Path) -> str:
    for name, matches in _DETECTORS.items():
        if matches(source):
            return name
    raise DataError(
        "unknown format", where=source, hint=f"Choose a --format from {', '.join(READERS)}"
    )
