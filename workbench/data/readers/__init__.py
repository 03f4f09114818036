"""Readers of source folders in several formats.

A reader opens annotations, never images. What it cannot read becomes a problem with its file and
reason; `workbench.data.ingest` checks the rest. To add a format, write the two functions that
`READERS` and `_DETECTORS` list.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import yaml

from workbench.core.errors import DataError, ParameterError
from workbench.core.names import check_path, invalid_on_a_line, shown
from workbench.core.parsing import parse_yaml
from workbench.core.text import counted, path_hint
from workbench.data.conditions import apply_conditions
from workbench.data.files import (
    IMAGE_SUFFIXES,
    files_of_other_kinds,
    find_images,
    kind_of_other_file,
    list_folder,
    read_json,
    read_text,
    relative_name,
)
from workbench.data.readers import (
    claims,
    coco,
    fiftyone,
    kitti,
    returned,
    scalabel,
    via,
    voc,
    yolo,
)
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
    "returned": returned.read_returned,
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
    "returned": returned.is_returned,
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
        conditions: Light or weather by word of the source, beside those in
            `workbench.data.conditions`.

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
    if contents.format not in {"images", "returned"} and empty:
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
                yolo_hint = "YOLO labels need class names (data.yaml or classes.txt). "
                raise DataError(
                    "annotations in an unknown format beside the images: " + ", ".join(annotations),
                    where=source,
                    hint=(yolo_hint if annotations[0].endswith(".txt") else "")
                    + f"Choose a --format from {', '.join(READERS)}; --format images reads the "
                    "images without labels",
                )
            return name
    raise DataError(
        "unknown format", where=source, hint=f"Choose a --format from {', '.join(READERS)}"
    )


_MAX_PROBED = 20
_MAX_LISTED = 3
_MAX_BYTES = 50_000_000
_HEAD_BYTES = 1_000_000
_KEYS = frozenset(
    {
        *("annotations", "annotation", "labels", "label", "objects", "shapes", "regions", "boxes"),
        *("bbox", "bboxes", "detections", "_via_img_metadata", "samples", "ground_truth", "items"),
        *("openlabel", "frames", "assets", "box2d", "polygon", "polygons", "points", "result"),
        *("category_token", "instance_token", "attribute_tokens", "object", "instances"),
        *("2d_bbox", "xy", "vid_list"),
    }
)
_CSV_COLUMNS = re.compile(
    r"\b(x_?min|x1|left|bbox|region_shape_attributes|label|class|class_?name|class_?id|category|xywh)\b",
    re.I,
)
_OPAQUE = frozenset(
    {
        *(".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".mat", ".pkl", ".pickle"),
        *(".npz", ".npy", ".h5", ".hdf5", ".parquet", ".arrow", ".feather", ".db", ".sqlite"),
        *(".xls", ".xlsx", ".tfrecord", ".record", ".lmdb"),
    }
)
"""Kinds of files that are not looked into; their names may say that they hold annotations."""
_ANNOTATION_NAME = re.compile(
    r"annot|label|bbox|boxes|instances|coco|ground_?truth|\bgt\b|\.(json|xml|csv)\b|record$", re.I
)
_NUMBER = re.compile(r"^[-+]?[\d.]+(e[-+]?\d+)?$", re.I)


def find_annotations(source: Path) -> list[str]:
    """Names of some files below ``source`` that look like annotations of its images.

    JSON that cannot be read has the reason behind its name.
    """
    files = list_folder(source).files
    stems = {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    found: list[str] = []
    for suffix, looks_annotated in (
        (".json", _is_annotated_json),
        (".jsonl", _is_annotated_json_lines),
        (".ndjson", _is_annotated_json_lines),
        (".xml", _is_annotated_xml),
        (".csv", _is_annotated_csv),
        (".tsv", _is_annotated_csv),
        (".yaml", _is_annotated_yaml),
        (".yml", _is_annotated_yaml),
        (".txt", lambda path: _is_annotated_text(path, stems)),
    ):
        alike = [path for path in files if path.suffix.lower() == suffix]
        probed = (path for path in alike[:_MAX_PROBED] if path.name != "drives.json")
        found += [
            relative_name(path, source) + (f" ({problem})" if isinstance(problem, str) else "")
            for path in probed
            if (problem := _probe(path, looks_annotated))
        ]
    found += [
        relative_name(path, source)
        for path in files
        if path.suffix.lower() in _OPAQUE and _ANNOTATION_NAME.search(path.name)
    ]
    return found[:_MAX_LISTED] + (["…"] if len(found) > _MAX_LISTED else [])


def _probe(path: Path, looks_annotated: Callable[[Path], bool]) -> bool | str:
    """Whether a file looks like annotations; of damaged JSON what is wrong with it."""
    problem: bool | str = True
    try:
        if path.stat().st_size <= _MAX_BYTES:
            return looks_annotated(path)
    except OSError:
        return False
    except ValueError as error:
        problem = f"not JSON: {error}"
    # A file that is damaged, or too large to be read only for this, may have been annotations.
    return problem if path.suffix.lower() == ".json" and _mentions_boxes(path) else False


def _mentions_boxes(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return False
    return any(f'"{key}"' in head for key in _KEYS)


def _is_annotated_json_lines(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return _is_annotated(json.loads(stream.readline()))


def _is_annotated_json(path: Path) -> bool:
    return _is_annotated(read_json(path))


def _is_annotated(body: Any) -> bool:
    if isinstance(body, list):
        body = body[0] if body else None
    if not isinstance(body, dict):
        return False
    if _KEYS & body.keys():
        return True
    # VIA's regions by image, and others by name
    first = next(iter(body.values()), None)
    return isinstance(first, dict) and bool(_KEYS & first.keys())


def _is_annotated_xml(path: Path) -> bool:
    head = read_text(path)[:2000]
    return "<annotation" in head or "<tracklets" in head


def _is_annotated_yaml(path: Path) -> bool:
    try:
        return _is_annotated(parse_yaml(read_text(path)))
    except yaml.YAMLError:
        return False


def _is_annotated_csv(path: Path) -> bool:
    header = next(iter(read_text(path).splitlines()), "")
    return bool(_CSV_COLUMNS.search(header) and set(",;\t") & set(header)) or _is_box_row(header)


def _is_annotated_text(path: Path, stems: set[str]) -> bool:
    line = next((line for line in read_text(path).splitlines() if line.strip()), "")
    folder = path.parent.name.lower()
    if path.stem in stems or folder.startswith("label") or folder == path.stem.lower() == "gt":
        return sum(bool(_NUMBER.match(word)) for word in re.split(r"[\s,;]+", line)) >= 4
    return _is_box_row(line)


def _is_box_row(line: str) -> bool:
    """Whether a line names an image and has the four numbers of a box."""
    words = re.split(r"[\s,;]+", line)
    named = any(PurePath(word).suffix.lower() in IMAGE_SUFFIXES for word in words)
    return named and sum(bool(_NUMBER.match(word)) for word in words) >= 4
