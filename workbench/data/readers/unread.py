"""Recognize annotations that no reader reads, so that they are not lost in silence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from workbench.data.files import IMAGE_SUFFIXES, list_folder, read_json, read_text, relative_name

__all__ = ()


_MAX_PROBED = 20
_MAX_NAMED = 3
_MAX_BYTES = 50_000_000
_HEAD_BYTES = 1_000_000
_KEYS = frozenset(
    {
        *("annotations", "annotation", "labels", "label", "objects", "shapes", "regions", "boxes"),
        *("bbox", "bboxes", "detections", "_via_img_metadata", "samples", "ground_truth", "items"),
        *("openlabel", "frames", "assets", "box2d", "polygon", "polygons", "points", "result"),
        *("category_token", "instance_token", "attribute_tokens", "object", "instances"),
    }
)
_CSV_COLUMNS = re.compile(
    r"\b(x_?min|x1|left|bbox|region_shape_attributes|label|class|class_name|category|xywh)\b", re.I
)
_NUMBER = re.compile(r"^[-+]?[\d.]+(e[-+]?\d+)?$", re.I)


def find_annotations(source: Path) -> list[str]:
    """Names of some files below ``source`` that look like annotations of its images."""
    files = list_folder(source).files
    stems = {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    found: list[str] = []
    for suffix, looks_annotated in (
        (".json", _is_annotated_json),
        (".jsonl", _is_annotated_json_lines),
        (".ndjson", _is_annotated_json_lines),
        (".xml", _is_annotated_xml),
        (".csv", _is_annotated_csv),
        (".txt", lambda path: _is_annotated_text(path, stems)),
    ):
        alike = [path for path in files if path.suffix.lower() == suffix]
        probed = (path for path in alike[:_MAX_PROBED] if path.name != "drives.json")
        found += [relative_name(path, source) for path in probed if _probe(path, looks_annotated)]
    return found[:_MAX_NAMED] + (["…"] if len(found) > _MAX_NAMED else [])


def _probe(path: Path, looks_annotated: Any) -> bool:
    try:
        if path.stat().st_size <= _MAX_BYTES:
            return bool(looks_annotated(path))
    except OSError:
        return False
    except ValueError:
        pass
    # A file that is damaged, or too large to be read only for this, may have been annotations.
    return path.suffix.lower() == ".json" and _mentions_boxes(path)


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
    return "<annotation" in read_text(path)[:2000]


def _is_annotated_csv(path: Path) -> bool:
    header = next(iter(read_text(path).splitlines()), "")
    return len(_CSV_COLUMNS.findall(header)) >= 1 and "," in header


def _is_annotated_text(path: Path, stems: set[str]) -> bool:
    if path.stem not in stems and not path.parent.name.lower().startswith("label"):
        return False
    line = next((line for line in read_text(path).splitlines() if line.strip()), "")
    words = line.replace(",", " ").split()
    return len(words) >= 5 and sum(bool(_NUMBER.match(word)) for word in words) >= 4
