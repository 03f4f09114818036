"""The VGG Image Annotator's own JSON: an export of annotations, or a saved project.

A region's class is its only attribute, else the one named ``class``, ``label``, ``type``, ``name``
or ``category``. Shapes are in pixels from the image's top left; of other shapes than ``rect`` the
upright box around them is taken. VIA's exports in the formats of COCO are read by that reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.core.errors import DataError
from workbench.core.types import Json
from workbench.data.files import find_files, parse_number, read_json, relative_name
from workbench.data.readers.claims import Claim, ImageFinder, images_root, settle_claims
from workbench.data.source import (
    Source,
    SourceBox,
    frame_of_file,
    left_out_text,
    mislabelled,
)
from workbench.records.types import Quarantined

__all__ = ()

_CLASS_ATTRIBUTES = ("class", "label", "type", "name", "category")
_MAX_PROBED = 20
_Corners = tuple[float, float, float, float]


def is_via(source: Path) -> bool:
    """Whether ``source`` is a JSON file of VIA, or has one."""
    return bool(_annotation_files(source))


def read_via(source: Path) -> Source:
    """Read the images that VIA's JSON files name.

    Raises:
        DataError: There is no JSON file of VIA.
    """
    files = _annotation_files(source)
    if not files:
        raise DataError("not a JSON file of VIA", where=source, hint="Try another --format")
    root = images_root(source)
    finder = ImageFinder(root)
    problems: list[Quarantined] = []
    claims = []
    for path, entries in files:
        where = relative_name(path, root) if path.is_relative_to(root) else path.name
        for entry in entries:
            name = str(entry["filename"])
            boxes, failed = _boxes(name, entry["regions"], problems)
            file, reason = finder.find(name, path.parent)
            if file is None:
                detail = f"named in {where}: {reason}{left_out_text(boxes)}"
                problems.append(Quarantined(file=name, reason="missing", detail=detail))
                continue
            frame = frame_of_file(file, root, boxes, failed=failed)
            claims.append(Claim(name, where, frame))
    frames, contradictions = settle_claims(claims)
    return Source(format="via", root=root, frames=frames, problems=(*problems, *contradictions))


def _annotation_files(source: Path) -> list[tuple[Path, list[Json]]]:
    files = [source] if source.is_file() else find_files(source, {".json"})[:_MAX_PROBED]
    found = ((path, _entries(path)) for path in files if path.suffix.lower() == ".json")
    return [(path, entries) for path, entries in found if entries]


def _entries(path: Path) -> list[Json]:
    """What the file says about each image; empty if it is not VIA's."""
    try:
        body = read_json(path)
    except (OSError, ValueError):
        return []
    if not isinstance(body, dict):
        return []
    images = body.get("_via_img_metadata", body)
    entries = list(images.values()) if isinstance(images, dict) else []
    is_via = all(
        isinstance(each, dict) and {"filename", "regions"} <= each.keys() for each in entries
    )
    return entries if is_via else []


def _boxes(
    name: str, regions: Any, problems: list[Quarantined]
) -> tuple[tuple[SourceBox, ...], int]:
    # The first version of VIA wrote regions as an object with their numbers as keys.
    rows = list(regions.values()) if isinstance(regions, dict) else regions
    boxes: list[SourceBox] = []
    failed = 0
    for number, region in enumerate(rows or (), start=1):
        detail = f"region {number}"
        try:
            boxes.append(_box(region, detail))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            failed += 1
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            problems.append(mislabelled(name, f"{detail}: {what}"))
    return tuple(boxes), failed


def _box(region: Json, detail: str) -> SourceBox:
    return SourceBox(
        name=_class_of(region["region_attributes"]),
        corners=_corners(region["shape_attributes"]),
        detail=detail,
    )


def _class_of(attributes: Json) -> str:
    by_name = {name.strip().lower(): value for name, value in attributes.items()}
    names = [name for name in _CLASS_ATTRIBUTES if name in by_name] or list(by_name)
    if not names:
        raise ValueError("it has no attribute, so no class")
    if len(names) > 1 and names[0] not in _CLASS_ATTRIBUTES:
        listed = ", ".join(attributes)
        raise ValueError(f"ambiguous class attribute: {listed}")
    value = by_name[names[0]]
    if isinstance(value, dict):  # checkboxes
        chosen = [option for option, on in value.items() if on]
        value = chosen[0] if len(chosen) == 1 else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"attribute {names[0]!r} has no single value")
    return value.strip()


def _corners(shape: Json) -> _Corners:
    def number(key: str) -> float:
        return parse_number(shape[key], key)

    kind = shape["name"]
    if kind == "rect":
        x, y = number("x"), number("y")
        return x, y, x + number("width"), y + number("height")
    if kind == "polygon":
        xs = [parse_number(value, "all_points_x") for value in shape["all_points_x"]]
        ys = [parse_number(value, "all_points_y") for value in shape["all_points_y"]]
        if len(xs) != len(ys) or len(xs) < 3:
            raise ValueError(f"a polygon with {len(xs)} x and {len(ys)} y")
        return min(xs), min(ys), max(xs), max(ys)
    if kind in ("circle", "ellipse"):
        rx = number("r" if kind == "circle" else "rx")
        ry = number("r" if kind == "circle" else "ry")
        if kind == "ellipse" and float(shape.get("theta") or 0):
            raise ValueError("a turned ellipse; draw a polygon or a rect")
        return number("cx") - rx, number("cy") - ry, number("cx") + rx, number("cy") + ry
    raise ValueError(f"a shape {kind!r} has no area")
