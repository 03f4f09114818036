"""Pascal VOC: an XML file an image; pixel indices count from 1 and both corners are inside.

Pixel k covers [k-1, k) in continuous coordinates, so a box is (xmin-1, ymin-1, xmax, ymax).
``difficult`` objects are not scored, as in VOC's own evaluation. ``truncated`` is a flag: 0 means
nothing is cut off; how much is, with 1, VOC does not say.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from workbench.data.source import (
    Source,
    SourceBox,
    SourceFrame,
    images_below,
    parse_name,
    relative,
)
from workbench.records.types import Quarantined

_MOST_BYTES = 8_000_000


def looks_right(source: Path) -> bool:
    if not source.is_dir():
        return False
    first = next(iter(sorted(_documents(source))), None)
    return first is not None and b"<annotation" in first.read_bytes()[:2000]


def read(source: Path) -> Source:
    """Images with the XML file of the same name beside them or under ``Annotations``."""
    files = images_below(source)
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    problems: list[Quarantined] = []
    boxes: dict[Path, tuple[tuple[int, int] | None, tuple[SourceBox, ...]]] = {}
    refused: set[Path] = set()
    for document in sorted(_documents(source)):
        image = _image_of(document, by_stem)
        name = relative(document, source)
        if image is None:
            problems.append(Quarantined(file=name, reason="missing", detail="its image is away"))
            continue
        try:
            if image in boxes:
                raise ValueError("a second annotation of the same image")
            boxes[image] = _parse(document, name, problems)
        except (ElementTree.ParseError, ValueError) as error:
            refused.add(image)
            problems.append(Quarantined(file=name, reason="mislabelled", detail=str(error)))
    # An image whose annotation is broken is no image without objects: it stays out as well.
    frames = tuple(
        _frame(file, source, *boxes.get(file, (None, ()))) for file in files if file not in refused
    )
    return Source(format="voc", root=source, frames=frames, problems=tuple(problems))


def _documents(source: Path) -> list[Path]:
    return [path for path in source.rglob("*.xml") if not path.name.startswith(".")]


def _image_of(document: Path, by_stem: dict[str, list[Path]]) -> Path | None:
    found = by_stem.get(document.stem, [])
    beside = [file for file in found if file.parent == document.parent]
    if beside:
        return beside[0]
    near = [file for file in found if file.parent.parent == document.parent.parent]
    return near[0] if near else (found[0] if len(found) == 1 else None)


def _parse(
    document: Path, name: str, problems: list[Quarantined]
) -> tuple[tuple[int, int] | None, tuple[SourceBox, ...]]:
    content = document.read_bytes()
    if len(content) > _MOST_BYTES or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        # Entities can grow without bound and VOC has no use for them.
        raise ValueError("not a VOC annotation: too large, or it defines entities")
    root = ElementTree.fromstring(content)  # noqa: S314 - entities are refused above
    if root.tag != "annotation":
        raise ValueError(f"not a VOC annotation but <{root.tag}>")
    found = []
    for number, entry in enumerate(root.iter("object"), start=1):
        try:
            found.append(_box(entry, f"object {number}"))
        except ValueError as error:
            detail = f"object {number}: {error}"
            problems.append(Quarantined(file=name, reason="mislabelled", detail=detail))
    width, height = root.findtext("size/width"), root.findtext("size/height")
    # Some tools write 0 x 0 for what they did not look up.
    size = (int(width), int(height)) if width and height and int(width) > 0 else None
    return size, tuple(found)


def _box(entry: ElementTree.Element, detail: str) -> SourceBox:
    name = (entry.findtext("name") or "").strip()
    texts = [entry.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    numbers = [float(text) for text in texts if text]
    if not name or len(numbers) != 4:
        raise ValueError("it has no name or no complete bndbox")
    x0, y0, x1, y1 = numbers
    return SourceBox(
        name=name,
        corners=(x0 - 1, y0 - 1, x1, y1),
        detail=detail,
        truncated=0.0 if entry.findtext("truncated") == "0" else None,
        ignore=entry.findtext("difficult") == "1",
    )


def _frame(
    file: Path, root: Path, size: tuple[int, int] | None, boxes: tuple[SourceBox, ...]
) -> SourceFrame:
    name = relative(file, root)
    parts = parse_name(name)
    return SourceFrame(
        file=file,
        name=name,
        drive=parts.drive,
        index=parts.index,
        counter=parts.counter,
        size=size,
        boxes=boxes,
    )
