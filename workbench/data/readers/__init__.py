"""Readers: a folder in one of several formats, to what its annotations claim.

A reader opens annotations, never images, and believes nothing: what it cannot make sense of
becomes a problem with its file and reason. `workbench.data.ingest` checks the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.core.errors import DataError, ParameterError
from workbench.data import source as provenance
from workbench.data.readers import coco, per_image
from workbench.data.source import Source

READERS: dict[str, Callable[[Path], Source]] = {
    "coco": coco.read_coco,
    "kitti": per_image.read_kitti,
    "voc": per_image.read_voc,
    "yolo": per_image.read_yolo,
    "images": per_image.read_images,
}

# In this order: what is most telling first, and any folder is a folder of images.
_DETECTORS: dict[str, Callable[[Path], bool]] = {
    "coco": coco.is_coco,
    "kitti": per_image.is_kitti,
    "voc": per_image.is_voc,
    "yolo": per_image.is_yolo,
    "images": per_image.is_image_folder,
}


def read_source(source: Path, format: str = "auto") -> Source:  # noqa: A002 - the word users know
    """Read ``source`` and what its ``drives.json`` adds.

    Raises:
        ParameterError: No such format, or no such folder.
        DataError: Nothing in there can be read in this format.
    """
    source = source.expanduser()
    if format != "auto" and format not in READERS:
        raise ParameterError(
            "unknown source format", where=format, hint=f"Use auto, {', '.join(READERS)}"
        )
    if not source.exists():
        raise ParameterError("there is no such source", where=source)
    chosen = detect_format(source) if format == "auto" else format
    found = provenance.apply_drives_file(READERS[chosen](source))
    if not found.frames:
        raise DataError(
            f"no frames found in the {chosen} format",
            where=source,
            hint="Name the folder that holds the images and annotations, or another --format",
        )
    return found


def detect_format(source: Path) -> str:
    """The format that ``source`` is in, judged by its files.

    Raises:
        DataError: It is in none.
    """
    for name, looks_right in _DETECTORS.items():
        if looks_right(source):
            return name
    raise DataError(
        "cannot tell what this source is", where=source, hint=f"Formats: {', '.join(READERS)}"
    )
