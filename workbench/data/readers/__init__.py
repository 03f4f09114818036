"""Readers of source folders in several formats.

A reader opens annotations, never images. What it cannot read becomes a problem with its file and
reason; `workbench.data.ingest` checks the rest. To add a format, write the two functions that
`READERS` and `_DETECTORS` list.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from workbench.core.errors import DataError, ParameterError
from workbench.core.names import check_path, invalid_on_a_line, shown
from workbench.core.text import counted, path_hint
from workbench.data.conditions import apply_conditions
from workbench.data.files import (
    files_of_other_kinds,
    find_images,
    kind_of_other_file,
    relative_name,
)
from workbench.data.readers import claims, coco, fiftyone, kitti, scalabel, via, voc, yolo
from workbench.data.readers.unread import find_annotations
from workbench.data.source import Source, apply_drives_file, number_frames
from workbench.records.types import Quarantined

__all__ = ["READERS", "read_source"]

READERS: dict[str, Callable[[Path], Source]] = {
    "coco": coco.read_coco,
    "scalabel": scalabel.read_scalabel,
    "fiftyone": fiftyone.read_fiftyone,
    "kitti": kitti.read_kitti,
    "via": via.read_via,
    "voc": voc.read_voc,
    "yolo": yolo.read_yolo,
    "images": claims.read_images,
}

# Most specific first: any folder can be a folder of images.
_DETECTORS: dict[str, Callable[[Path], bool]] = {
    "coco": coco.is_coco,
    "kitti": kitti.is_kitti,
    "voc": voc.is_voc,
    "yolo": yolo.is_yolo,
    "scalabel": scalabel.is_scalabel,
    "fiftyone": fiftyone.is_fiftyone,
    "via": via.is_via,
    "images": claims.is_image_folder,
}


_MAX_NAMED = 3  # problems in a message


def read_source(
    source: Path,
    format: str = "auto",  # noqa: A002 - as on the command line
    conditions: Mapping[str, str] | None = None,
) -> Source:
    """Read a source folder, including its ``drives.json``.

    Args:
        format: A key of `READERS`, or ``auto`` to detect it.
        conditions: Light or weather by word of the source, beside `CONDITION_WORDS`.

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
        raise ParameterError("no such source", where=source, hint=path_hint(source))
    if source.is_file() and (kind := kind_of_other_file(source)) is not None:
        hint = f"Unpack it first: unzip {source.name} -d FOLDER, then ingest FOLDER"
        raise DataError(
            f"the source is {kind}, not a folder",
            where=source,
            hint=hint if kind == "an archive" else "Name a folder of images",
        )
    chosen = _detect_format(source) if format == "auto" else format
    contents = READERS[chosen](source)
    contents = replace(contents, frames=number_frames(contents.frames))
    contents = apply_drives_file(apply_conditions(contents, conditions or {}))
    contents = _with_usable_names(contents)
    if not contents.frames:
        problems = [f"{entry.file}: {entry.detail}" for entry in contents.problems[:_MAX_NAMED]]
        problem = f". First problems: {'; '.join(problems)}" if problems else ""
        raise DataError(
            f"no frames found in the {chosen} format",
            where=source,
            hint="Name the folder with the images and annotations, or try another --format"
            + problem,
        )
    if source.is_dir():
        contents = _with_other_files(contents)
        contents = replace(contents, notes=(*contents.notes, *_notes(contents, source)))
    return contents


def _with_usable_names(source: Source) -> Source:
    """``source`` without the frames whose file or drive has a name that cannot be written.

    Names of drives are in NFC: some file systems write accents as characters of their own.
    """
    usable, problems = [], list(source.problems)
    for frame in source.frames:
        try:
            if any(map(invalid_on_a_line, frame.name)):
                raise ParameterError(f"invalid file name {shown(frame.name)}")
            drive = check_path(unicodedata.normalize("NFC", frame.drive), "name of its drive")
            usable.append(frame if drive == frame.drive else replace(frame, drive=drive))
        except ParameterError as error:
            detail = f"{error.what}; rename it"
            problems.append(Quarantined(file=frame.name, reason="unreadable", detail=detail))
    named = [(unicodedata.normalize("NFC", name), drive) for name, drive in source.drives.items()]
    drives = {name: drive.model_copy(update={"id": name}) for name, drive in named}
    return replace(source, frames=tuple(usable), problems=tuple(problems), drives=drives)


def _with_other_files(source: Source) -> Source:
    """``source`` with a problem for each picture, video or archive that no reader reads."""
    named = {frame.name for frame in source.frames} | {entry.file for entry in source.problems}
    others = [entry for entry in files_of_other_kinds(source.root) if entry.file not in named]
    return replace(source, problems=(*source.problems, *others))


def _notes(contents: Source, source: Path) -> list[str]:
    """What lies beside the frames and labels that were read."""
    notes = []
    named = {frame.file for frame in contents.frames}
    known = {entry.file for entry in contents.problems}
    folders = {file.parent for file in named}
    beside = [
        relative_name(path, contents.root)
        for path in find_images(contents.root)
        if path.parent in folders and path not in named
    ]
    unnamed = [name for name in beside if name not in known]
    if unnamed:
        what = counted(len(unnamed), "image")
        notes.append(f"{what} without an entry in the annotations left out, such as {unnamed[0]}")
    empty = [frame.name for frame in contents.frames if not frame.annotated]
    if contents.format != "images" and empty:
        what = counted(len(empty), "image")
        notes.append(f"{what} without an annotation file, taken for empty, such as {empty[0]}")
    others = [
        name
        for name, matches in _DETECTORS.items()
        if name not in (contents.format, "images") and _matches(matches, source)
    ]
    if contents.format != "images" and others:
        formats = " and ".join(others)
        notes.append(f"{formats} annotations beside it were not read: --format {others[0]} does")
    return notes


def _matches(matches: Callable[[Path], bool], source: Path) -> bool:
    try:
        return matches(source)
    except DataError:  # it says what is wrong with annotations that are not read
        return True


def _detect_format(source: Path) -> str:
    for name, matches in _DETECTORS.items():
        if matches(source):
            if name == "images" and (annotations := find_annotations(source)):
                raise DataError(
                    "annotations in an unknown format beside the images: " + ", ".join(annotations),
                    where=source,
                    hint=f"Choose a --format from {', '.join(READERS)}; --format images reads the "
                    "images without labels",
                )
            return name
    raise DataError(
        "unknown format", where=source, hint=f"Choose a --format from {', '.join(READERS)}"
    )
