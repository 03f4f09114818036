"""YOLO text files: ``class cx cy w h`` a line, fractions of the image, or a polygon's corners.

Class names come from ``data.yaml`` (any YAML with ``names``), ``classes.txt`` or ``obj.names``. A
polygon becomes the box around it. A line of six numbers carries a confidence: that is what a
model said, not a label, and it is quarantined.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from workbench.data.source import (
    Source,
    SourceBox,
    SourceFrame,
    images_below,
    parse_name,
    relative,
)
from workbench.errors import DataError
from workbench.records.types import Quarantined

_LISTS = ("classes.txt", "obj.names")
_NO_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "test.txt", "notes.txt"})


def looks_right(source: Path) -> bool:
    if not source.is_dir():
        return False
    named = any((source / name).is_file() for name in _LISTS) or _yaml_names(source) is not None
    return named and any(True for _ in _label_files(source))


def read(source: Path) -> Source:
    """Images with the text file of the same name beside them, or in ``labels`` for ``images``.

    Raises:
        DataError: No list of class names.
    """
    names = _names(source)
    files = images_below(source)
    problems: list[Quarantined] = []
    frames: list[SourceFrame] = []
    used: set[Path] = set()
    for file in files:
        labels = _labels_of(file, source)
        boxes: tuple[SourceBox, ...] = ()
        if labels is not None:
            used.add(labels)
            boxes = _parse(labels, relative(labels, source), names, problems)
        frames.append(_frame(file, source, boxes))
    for path in sorted(set(_label_files(source)) - used):
        name = relative(path, source)
        problems.append(Quarantined(file=name, reason="missing", detail="its image is away"))
    return Source(format="yolo", root=source, frames=tuple(frames), problems=tuple(problems))


def _label_files(source: Path) -> list[Path]:
    folders = [path for path in source.rglob("labels") if path.is_dir()] or [source]
    return [
        path for folder in folders for path in folder.rglob("*.txt") if path.name not in _NO_LABELS
    ]


def _labels_of(image: Path, root: Path) -> Path | None:
    parts = list(image.relative_to(root).parts)
    candidates = [image.with_suffix(".txt")]
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        swapped = [*parts[:last], "labels", *parts[last + 1 :]]
        candidates.insert(0, root.joinpath(*swapped).with_suffix(".txt"))
    return next((path for path in candidates if path.is_file()), None)


def _names(source: Path) -> dict[int, str]:
    listed = _yaml_names(source)
    if listed is not None:
        return listed
    for name in _LISTS:
        if (source / name).is_file():
            rows = (source / name).read_text(errors="replace").splitlines()
            return {number: row.strip() for number, row in enumerate(rows) if row.strip()}
    raise DataError(
        "no class names for YOLO labels",
        where=source,
        hint="Put data.yaml with `names`, or classes.txt with a name a line, beside the images",
    )


def _yaml_names(source: Path) -> dict[int, str] | None:
    for path in sorted((*source.glob("*.yaml"), *source.glob("*.yml"))):
        try:
            body: Any = yaml.safe_load(path.read_text())
            names = body.get("names") if isinstance(body, dict) else None
            if isinstance(names, list):
                return {number: str(name) for number, name in enumerate(names)}
            if isinstance(names, dict):
                return {int(number): str(name) for number, name in names.items()}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError("cannot read the YOLO description", where=path) from error
    return None


def _parse(
    path: Path, name: str, names: dict[int, str], problems: list[Quarantined]
) -> tuple[SourceBox, ...]:
    boxes = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            boxes.append(_box(line.split(), names, f"line {number}"))
        except ValueError as error:
            detail = f"line {number}: {error}"
            problems.append(Quarantined(file=name, reason="mislabelled", detail=detail))
    return tuple(boxes)


def _box(words: list[str], names: dict[int, str], detail: str) -> SourceBox:
    if len(words) == 6:
        raise ValueError("six numbers: a model's output with its confidence is no label")
    if len(words) < 5 or len(words) % 2 == 0:
        raise ValueError(f"{len(words)} numbers are neither a box nor a polygon")
    number = int(words[0])
    values = [float(word) for word in words[1:]]
    if len(values) == 4:
        cx, cy, w, h = values
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    else:
        xs, ys = values[0::2], values[1::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    name = names.get(number, f"class {number}")
    return SourceBox(name=name, corners=corners, detail=detail, normalised=True)


def _frame(file: Path, root: Path, boxes: tuple[SourceBox, ...]) -> SourceFrame:
    name = relative(file, root)
    parts = parse_name(name)
    return SourceFrame(
        file=file,
        name=name,
        drive=parts.drive,
        index=parts.index,
        counter=parts.counter,
        boxes=boxes,
    )
