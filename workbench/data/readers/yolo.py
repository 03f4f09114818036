"""YOLO: ``class cx cy w h`` per line, in fractions of the image.

Or the corners of a polygon, of which the bounding box is taken, or key points behind the box where
the description has ``kpt_shape``. Class names come from ``data.yaml`` (any YAML with ``names``),
``classes.txt``, ``obj.names`` or ``_darknet.labels``. A line of six numbers has a confidence: it is
a prediction, not a label, and is quarantined.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import DataError
from workbench.core.parsing import parse_yaml
from workbench.data.files import (
    find_files,
    find_images,
    name_key,
    parse_integer,
    parse_number,
    read_text,
    relative_name,
)
from workbench.data.readers.claims import image_missing, parse_lines
from workbench.data.source import (
    Source,
    SourceBox,
    SourceFrame,
    frame_of_file,
    left_out_text,
    mislabelled,
)
from workbench.records.types import Quarantined

__all__ = ()


_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_NUMBERED = re.compile(r"([0-9]{1,6})\s*[:,.\s]\s*(\S.*)")
_IMAGES, _LABELS = "images", "labels"
_OTHER_FILES = frozenset(
    {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "notes.txt", "images.txt"}
)


@dataclass(frozen=True)
class _Description:
    """Class names by number, and how many numbers of key points follow a box."""

    names: dict[int, str]
    keypoint_numbers: int = 0


def is_yolo(source: Path) -> bool:
    """Whether there are class names and label files below ``source``."""
    if not source.is_dir():
        return False
    return bool(_name_files(source) or _from_yaml(source)) and bool(_label_files(source))


def read_yolo(source: Path) -> Source:
    """Images with the text files of the same names, beside them or in ``labels`` for ``images``.

    Raises:
        DataError: There are no class names.
    """
    parse = partial(_box, description=_describe(source))
    files = find_images(source)
    problems: list[Quarantined] = []
    frames: list[SourceFrame] = []
    users: dict[Path, list[Path]] = defaultdict(list)
    all_labels = _label_files(source)
    labels_of = _pair(files, all_labels, source)
    for file, labels in labels_of.items():
        if labels is not None:
            users[labels].append(file)
    for file, labels in labels_of.items():
        if labels is None:
            frames.append(frame_of_file(file, source))
        elif len(users[labels]) == 1:
            boxes, failed = parse_lines(labels, source, parse, problems)
            frames.append(frame_of_file(file, source, boxes, failed=failed))
        elif file == users[labels][0]:
            boxes, _ = parse_lines(labels, source, parse, problems)
            shared = " and ".join(relative_name(each, source) for each in users[labels])
            detail = f"it may belong to any of {shared}: these images are left out"
            problems.append(
                mislabelled(relative_name(labels, source), detail + left_out_text(boxes))
            )
    for path in sorted(set(all_labels) - set(users)):
        boxes, _ = parse_lines(path, source, parse, problems)
        problems.append(image_missing(path, source, boxes))
    return Source(format="yolo", root=source, frames=tuple(frames), problems=tuple(problems))


def _label_files(source: Path) -> list[Path]:
    images = {(path.parent, name_key(path.stem)) for path in find_images(source)}

    def is_label(path: Path, below: bool) -> bool:
        if (path.parent, name_key(path.stem)) in images:
            return True  # beside its image, whatever its name
        # README.roboflow.txt and the like lie beside the folders, never beside labels.
        other = path.name in _OTHER_FILES or path.name.lower().startswith("readme")
        in_labels = _LABELS in _folders(path, source)
        return path.name not in _NAME_FILES and (in_labels if below else not other)

    files = find_files(source, {".txt"})
    below = any(_LABELS in _folders(path, source) for path in files)
    return [path for path in files if is_label(path, below)]


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    return tuple(map(name_key, path.relative_to(root).parts[:-1]))


def _pair(images: list[Path], labels: list[Path], root: Path) -> dict[Path, Path | None]:
    """The labels of each image, whatever the case of names and folders.

    They lie in ``labels`` where the image lies in ``images``, beside the image, or in a folder
    ``labels`` beside or below the image's.
    """
    by_name: dict[tuple[tuple[str, ...], str], list[Path]] = defaultdict(list)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in labels:
        by_name[_folders(path, root), name_key(path.stem)].append(path)
        by_stem[name_key(path.stem)].append(path)
    stems = Counter(name_key(image.stem) for image in images)

    def find(image: Path) -> Path | None:
        own = _folders(image, root)
        folders = [own, (*own[:-1], _LABELS), (*own, _LABELS)]
        if _IMAGES in own:
            last = len(own) - 1 - own[::-1].index(_IMAGES)
            folders.insert(0, (*own[:last], _LABELS, *own[last + 1 :]))
        # Some exporters keep the image's suffix: a.png.txt is of a.png only.
        names = (name_key(image.name), name_key(image.stem))
        keys = ((folder, name) for folder in folders for name in names)
        found = next((by_name[key] for key in keys if key in by_name), [])
        if not found and stems[names[1]] == 1 and len(by_stem[names[1]]) == 1:
            return by_stem[names[1]][0]  # the only two of this name, wherever they lie
        alike = (path for path in found if path.stem in (image.stem, image.name))
        return next(alike, found[0] if found else None)

    return {image: find(image) for image in images}


def _describe(source: Path) -> _Description:
    listed = _from_yaml(source)
    if listed is not None:
        return listed
    named: dict[Path, _Description] = {}
    for path in _name_files(source):
        try:
            rows = read_text(path).splitlines()
        except ValueError as error:
            raise DataError(f"cannot read class names: {error}", where=path) from error
        named[path] = _Description(_listed_names(rows))
    if named:
        return _the_same(named, source)
    raise DataError(
        "no class names for YOLO labels",
        where=source,
        hint="Add data.yaml with `names`, or classes.txt with one name per line",
    )


def _listed_names(rows: list[str]) -> dict[int, str]:
    """Names by line; also of ``0: car`` on each line, and of one line with commas."""
    if len(rows) == 1 and "," in rows[0]:
        rows = rows[0].split(",")
    names = {number: row.strip() for number, row in enumerate(rows) if row.strip()}
    numbered = {number: _NUMBERED.match(name) for number, name in names.items()}
    if all(match and int(match[1]) == number for number, match in numbered.items()):
        return {number: match[2] for number, match in numbered.items() if match}
    return names


def _name_files(source: Path) -> list[Path]:
    """Lists of class names at the top, else in the folders with labels, as LabelImg writes them."""
    top = [source / name for name in _NAME_FILES if (source / name).is_file()]
    beside = sorted({path.parent for path in _label_files(source)})
    below = [folder / name for folder in beside for name in _NAME_FILES]
    return top[:1] or [path for path in below if path.is_file()]


def _the_same(descriptions: dict[Path, _Description], source: Path) -> _Description:
    first, *others = descriptions.values()
    if any(other != first for other in others):
        names = ", ".join(relative_name(path, source) for path in descriptions)
        raise DataError(
            f"several files give different class names: {names}",
            where=source,
            hint="Keep the one that the labels were drawn with, as data.yaml",
        )
    return first


def _from_yaml(source: Path) -> _Description | None:
    files = [*source.glob("*.yaml"), *source.glob("*.yml")]
    found: dict[Path, _Description] = {}
    for path in sorted(path for path in files if not path.name.startswith(".")):
        try:
            body: Any = parse_yaml(read_text(path))
            names = body.get("names") if isinstance(body, dict) else None
            if isinstance(names, list):
                names = dict(enumerate(names))
            if isinstance(names, dict):
                found[path] = _Description(
                    {parse_integer(number, "class"): str(name) for number, name in names.items()},
                    _keypoint_numbers(body.get("kpt_shape")),
                )
        except yaml.YAMLError as error:
            raise DataError(
                f"cannot read the class names of YOLO labels: {_yaml_problem(error)}",
                where=path,
                hint="In double quotes a backslash begins an escape: write Windows paths in single "
                "quotes or with slashes"
                if "escape" in str(error)
                else "It needs `names`: a list, or names by number",
            ) from error
        except (OSError, ValueError) as error:
            what = f"cannot read the class names of YOLO labels: {error}"
            raise DataError(what, where=path) from error
    usual = [path for path in found if path.stem == "data"]
    return _the_same({path: found[path] for path in usual or found}, source) if found else None


def _keypoint_numbers(shape: Any) -> int:
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2:
        raise ValueError(f"kpt_shape must be [points, numbers per point], not {shape!r}")
    return parse_integer(shape[0], "kpt_shape") * parse_integer(shape[1], "kpt_shape")


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)


def _box(words: list[str], detail: str, description: _Description) -> SourceBox:
    if "," in words[0] or ";" in words[0]:
        raise ValueError("its numbers are separated by commas; YOLO separates them by spaces")
    keypoints = description.keypoint_numbers
    if keypoints and len(words) == 5 + keypoints:
        words = words[:5]
    elif keypoints and len(words) != 5:
        expected = 5 + keypoints
        raise ValueError(f"{len(words)} numbers instead of the {expected} that kpt_shape implies")
    if len(words) == 6:
        raise ValueError("six numbers: a model's output with its confidence, not a label")
    if len(words) < 5 or len(words) % 2 == 0:
        raise ValueError(f"{len(words)} numbers are neither a box nor a polygon")
    number = parse_integer(words[0], "class")
    values = [parse_number(word, "coordinate") for word in words[1:]]
    if len(values) == 4:
        cx, cy, w, h = values
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    else:
        xs, ys = values[0::2], values[1::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    name = description.names.get(number, f"class {number}")
    return SourceBox(name=name, corners=corners, detail=detail, normalised=True)
