"""COCO detection files: ``bbox`` is [x, y, width, height] in pixels, origin top left.

Beyond COCO, an image may carry ``drive`` (or ``sequence``), ``index``, ``timestamp_us``,
``light`` (or ``lighting``), ``weather``, ``construction`` and ``events``, and an annotation
``occluded``, ``truncated`` (fractions) and ``track``. ``iscrowd`` marks an ignore region.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from workbench.core.errors import DataError
from workbench.core.types import Json
from workbench.data.source import (
    Source,
    SourceBox,
    SourceFrame,
    find_images,
    parse_file_name,
    relative_name,
)
from workbench.records.frames import Conditions, Light, Weather
from workbench.records.types import Quarantined

_COMMON_FILE_NAMES = (
    "labels.coco.json",
    "_annotations.coco.json",
    "annotations.json",
    "instances.json",
)


def is_coco(source: Path) -> bool:
    """Whether ``source`` is or contains a COCO file."""
    return bool(_candidates(source))


def read_coco(source: Path) -> Source:
    """Read the COCO file in ``source``, or the file ``source``.

    Raises:
        DataError: There is no COCO file, or several.
    """
    path = _coco_file(source)
    root = source if source.is_dir() else source.parent
    body = _load(path)
    problems: list[Quarantined] = []
    boxes = _boxes(body, relative_name(path, root), problems)
    finder = _ImageFinder(root, path.parent)
    frames: list[SourceFrame] = []
    seen: set[Any] = set()
    for image in body["images"]:
        frame = _frame(image, boxes, finder, problems, relative_name(path, root))
        if frame is not None and image.get("id") in seen:
            problems.append(_mislabelled(frame.name, f"image id {image['id']} is used twice"))
        elif frame is not None:
            seen.add(image["id"])
            frames.append(frame)
    known = {str(image.get("id")) for image in body["images"] if isinstance(image, dict)}
    for image_id, orphans in boxes.items():
        if str(image_id) not in known:
            for box in orphans:
                where = relative_name(path, root)
                problems.append(_mislabelled(where, f"{box.detail}: no image has id {image_id}"))
    return Source(
        format="coco",
        root=root,
        frames=tuple(frames),
        problems=tuple(problems),
    )


def _coco_file(source: Path) -> Path:
    files = _candidates(source)
    if len(files) == 1:
        return files[0]
    names = ", ".join(path.name for path in files[:5])
    raise DataError(
        f"several COCO files: {names}" if files else "no COCO file",
        where=source,
        hint="Name one of them instead of the folder" if files else "Try another --format",
    )


def _candidates(source: Path) -> list[Path]:
    """COCO files in ``source``; one with a common name takes precedence."""
    if source.is_file():
        return [source] if source.suffix == ".json" else []
    for name in _COMMON_FILE_NAMES:
        if (source / name).is_file():
            return [source / name]
    listed = [*sorted(source.glob("*.json")), *sorted(source.glob("annotations/*.json"))]
    return [path for path in listed if _is_coco_file(path)]


def _is_coco_file(path: Path) -> bool:
    try:
        _load(path)
    except DataError:
        return False
    return True


def _load(path: Path) -> Json:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the COCO file: {error}", where=path) from error
    parts = ("images", "annotations", "categories")
    if not isinstance(body, dict) or not all(isinstance(body.get(part), list) for part in parts):
        raise DataError(
            "not a COCO detection file", where=path, hint=f"It needs {', '.join(parts)}"
        )
    return body


def _boxes(body: Json, where: str, problems: list[Quarantined]) -> dict[Any, list[SourceBox]]:
    rows = [row for row in body["categories"] if isinstance(row, dict)]
    names = {str(row.get("id")): str(row.get("name")) for row in rows}
    found: dict[Any, list[SourceBox]] = defaultdict(list)
    for annotation in body["annotations"]:
        if not isinstance(annotation, dict):
            problems.append(_mislabelled(where, f"no annotation: {str(annotation)[:80]}"))
            continue
        detail = f"annotation {annotation.get('id')}"
        category = str(annotation.get("category_id"))
        try:
            x, y, w, h = (float(value) for value in annotation["bbox"])
            box = SourceBox(
                name=names.get(category, f"category {category}"),
                corners=(x, y, x + w, y + h),
                detail=detail,
                occluded=_fraction_or_none(annotation.get("occluded")),
                truncated=_fraction_or_none(annotation.get("truncated")),
                ignore=bool(annotation.get("iscrowd", 0)),
                track=None if annotation.get("track") is None else str(annotation["track"]),
            )
            found[annotation["image_id"]].append(box)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(_mislabelled(where, f"{detail}: cannot be read ({error!r})"))
    return found


def _fraction_or_none(value: Any) -> float | None:
    # Some exporters write flags: false is 0, and true does not say how much.
    if value is None or isinstance(value, bool):
        return None if value is not False else 0.0
    number = float(value)
    return number if 0 <= number <= 1 else None


def _frame(
    image: Any,
    boxes: dict[Any, list[SourceBox]],
    finder: _ImageFinder,
    problems: list[Quarantined],
    where: str,
) -> SourceFrame | None:
    if not isinstance(image, dict) or "id" not in image or "file_name" not in image:
        problems.append(_mislabelled(where, f"an image without id or file_name: {str(image)[:80]}"))
        return None
    name = str(image["file_name"])
    file = finder.find(name)
    if file is None:
        problems.append(Quarantined(file=name, reason="missing", detail="named in " + where))
        return None
    parts = parse_file_name(name)
    try:
        conditions = _conditions(image)
        index, timestamp = image.get("index", parts.index), image.get("timestamp_us")
        return SourceFrame(
            file=file,
            name=relative_name(file, finder.root),
            drive=str(image.get("drive") or image.get("sequence") or parts.drive),
            index=int(index),
            counter=parts.counter,
            timestamp_us=None if timestamp is None else int(timestamp),
            conditions=conditions,
            events=tuple(str(event) for event in image.get("events") or ()),
            size=_size(image),
            boxes=tuple(boxes.get(image["id"], ())),
        )
    except (TypeError, ValueError, ValidationError) as error:
        problems.append(_mislabelled(name, f"its description cannot be read ({error!r})"))
        return None


def _size(image: Json) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return None if width is None or height is None else (int(width), int(height))


def _conditions(image: Json) -> Conditions:
    """Conditions of an image; values that are not ours are ``unknown``."""
    light = str(image.get("light") or image.get("lighting") or "").lower()
    weather = str(image.get("weather") or "").lower()
    return Conditions(
        light=Light(light) if light in set(Light) else Light.UNKNOWN,
        weather=Weather(weather) if weather in set(Weather) else Weather.UNKNOWN,
        construction=bool(image.get("construction", False)),
    )


class _ImageFinder:
    """Finds images where COCO files usually have them, and never outside the source."""

    def __init__(self, root: Path, beside: Path) -> None:
        self.root = root
        self._folders = (beside, beside / "images", root, root / "images")
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts:
            return None
        for folder in self._folders:
            if (folder / pure).is_file():
                return folder / pure
        if self._by_name is None:
            self._by_name = {}
            for path in find_images(self.root):
                self._by_name.setdefault(path.name, []).append(path)
        files = self._by_name.get(pure.name, [])
        return files[0] if len(files) == 1 else None


def _mislabelled(file: str, detail: str) -> Quarantined:
    return Quarantined(file=file, reason="mislabelled", detail=detail)
