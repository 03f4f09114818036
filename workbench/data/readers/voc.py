"""Pascal VOC: one XML file per image.

Pixel indices count from 1 and both corners are inside: pixel k covers [k-1, k), so a box is
(xmin-1, ymin-1, xmax, ymax). ``difficult`` objects are ignored, as in VOC's own evaluation.
``truncated`` is a flag: 1 does not say how much is cut off.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from workbench.core.parsing import UNREADABLE, describe_unreadable, read_regular
from workbench.data.files import (
    decode_text,
    find_files,
    find_images,
    name_key,
    parse_flag,
    parse_number,
    parse_size,
    refuse_rotation,
    refuse_score,
    relative_name,
)
from workbench.data.readers.claims import image_missing
from workbench.data.source import Source, SourceBox, frame_of_file, left_out_text, mislabelled
from workbench.records.types import Quarantined

__all__ = ()


_MAX_BYTES = 8_000_000
_MAX_PROBED = 20
_MASKS = frozenset({"SegmentationClass", "SegmentationObject"})
"""Folders of VOC 2012 with masks of the same names as the images."""
_DECLARATION = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._:-]+)[\"'][^>]*\?>")


@dataclass(frozen=True)
class _Document:
    """A VOC document; ``image`` is None where neither its name nor ``<filename>`` has one."""

    path: Path
    filename: str
    size: tuple[int, int] | None
    boxes: tuple[SourceBox, ...]
    failed: int


def is_voc(source: Path) -> bool:
    """Whether one of the first XML files below ``source`` is a VOC annotation."""
    if not source.is_dir():
        return False
    return any(
        "<annotation>" in _head(path) or "<annotation " in _head(path)
        for path in find_files(source, {".xml"})[:_MAX_PROBED]
    )


def read_voc(source: Path) -> Source:
    """Images with the XML files of the same names, beside them or in ``Annotations``.

    Where ``<filename>`` names another existing image than the XML file's own name, both images are
    left out: nobody knows to which of them the boxes belong.
    """
    files = [file for file in find_images(source) if file.parent.name not in _MASKS]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_stem[name_key(file.stem)].append(file)
    problems: list[Quarantined] = []
    claims: dict[Path, list[_Document]] = defaultdict(list)
    rejected: set[Path] = set()
    for path in find_files(source, {".xml"}):
        name = relative_name(path, source)
        named_alike = _images_of(path, path.stem, by_stem)
        try:
            document = _parse(path, name, problems)
        except (ElementTree.ParseError, *UNREADABLE) as error:
            # An image with an invalid annotation is not an image without objects.
            rejected.update(named_alike)
            detail = str(error) if named_alike else f"{error}; its image is missing"
            reason = "mislabelled" if named_alike else "missing"
            problems.append(
                Quarantined.model_validate({"file": name, "reason": reason, "detail": detail})
            )
            continue
        image = named_alike[0] if named_alike else None
        named = _named_image(document, image, by_stem)
        if len(named_alike) > 1:
            rejected.update(named_alike)
            what = " and ".join(relative_name(file, source) for file in named_alike)
            detail = f"its name fits two images, {what}"
            problems.append(mislabelled(name, detail + left_out_text(document.boxes)))
        elif image is None and named is None:
            problems.append(image_missing(path, source, document.boxes))
        elif image is not None and named is not None and named != image:
            rejected.update((image, named))
            detail = (
                f"its name belongs to {relative_name(image, source)}, but <filename> says "
                f"{document.filename}: both images are left out"
            )
            problems.append(mislabelled(name, detail + left_out_text(document.boxes)))
        else:
            claims[image or named or path].append(document)
    frames = []
    for file in files:
        documents = claims.get(file, [])
        if len(documents) > 1 or (file in rejected and documents):
            for document in documents:
                detail = (
                    f"{len(documents)} annotations of {relative_name(file, source)}"
                    if len(documents) > 1
                    else f"another annotation also claims {relative_name(file, source)}"
                )
                name = relative_name(document.path, source)
                problems.append(mislabelled(name, detail + left_out_text(document.boxes)))
        elif file not in rejected:
            one = documents[0] if documents else None
            frames.append(
                frame_of_file(file, source, one.boxes, one.size, one.failed)
                if one
                else frame_of_file(file, source)
            )
    return Source(format="voc", root=source, frames=tuple(frames), problems=tuple(problems))


def _images_of(document: Path, stem: str, by_stem: dict[str, list[Path]]) -> list[Path]:
    """The image of a name for a document; several where the nearest folder has several."""
    images = by_stem.get(name_key(stem), [])
    if not images:  # some exporters keep the image's suffix: a.png.xml is of a.png only
        named = by_stem.get(name_key(PurePosixPath(stem).stem), [])
        images = [file for file in named if name_key(file.name) == name_key(stem)]
    images = [file for file in images if stem in (file.stem, file.name)] or images
    for near in (
        [file for file in images if file.parent == document.parent],
        [file for file in images if file.parent.parent == document.parent.parent],
    ):
        if near:
            return near
    return images if len(images) == 1 else []


def _named_image(
    document: _Document, own: Path | None, by_stem: dict[str, list[Path]]
) -> Path | None:
    """The existing image that ``<filename>`` names."""
    name = PurePosixPath(document.filename.replace("\\", "/"))
    if not name.name or (own is not None and name_key(name.stem) == name_key(own.stem)):
        return own
    images = _images_of(document.path, name.stem, by_stem)
    return images[0] if len(images) == 1 else None


def _head(path: Path) -> str:
    try:
        content = read_regular(path, max_bytes=_MAX_BYTES)[:2000]
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1")
    except (OSError, ValueError):
        return ""


def _parse(path: Path, name: str, problems: list[Quarantined]) -> _Document:
    try:
        content = read_regular(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror or error}") from error
    declared = _DECLARATION.match(content)
    text = decode_text(content, declared[1].decode() if declared else None)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        # Entities can expand without bound, and VOC does not use them.
        raise ValueError("not a VOC annotation: it defines entities")
    root = ElementTree.fromstring(text.strip())  # noqa: S314 - no entities, see above
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # without its namespace
    if root.tag != "annotation":
        raise ValueError(f"not a VOC annotation but <{root.tag}>")
    boxes, failed = [], 0
    for number, entry in enumerate(root.iter("object"), start=1):
        try:
            boxes.append(_box(entry, f"object {number}"))
        except UNREADABLE as error:
            failed += 1
            reason = describe_unreadable(error)
            problems.append(mislabelled(name, f"object {number}: {reason}"))
    # Some tools write 0 x 0 for an unknown size.
    size = parse_size(root.findtext("size/width"), root.findtext("size/height"))
    filename = (root.findtext("filename") or "").strip()
    return _Document(path, filename, size, tuple(boxes), failed)


def _box(entry: ElementTree.Element, detail: str) -> SourceBox:
    name = (entry.findtext("name") or "").strip()
    count = len(entry.findall("bndbox"))
    if count > 1:
        raise ValueError(f"it has {count} bndbox elements: one object each")
    texts = [entry.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    numbers = [parse_number(text, "coordinate") for text in texts if text and text.strip()]
    if not name or len(numbers) != 4:
        lacks = "bndbox with xmin, ymin, xmax, ymax" if name else "name"
        raise ValueError(f"it has no {lacks}")
    refuse_score(entry.findtext("score") or entry.findtext("confidence"))
    for attribute in entry.iterfind("attributes/attribute"):
        if attribute.findtext("name") == "rotation":
            refuse_rotation(attribute.findtext("value"))
    x0, y0, x1, y1 = numbers
    cut = (entry.findtext("truncated") or "").strip()
    return SourceBox(
        name=name,
        corners=(x0 - 1, y0 - 1, x1, y1),
        detail=detail,
        truncated=0.0 if cut and cut.lower() != "unspecified" and not parse_flag(cut) else None,
        ignore=parse_flag(entry.findtext("difficult"), "difficult"),
    )
