"""Text files with one box per line, and folders of images without labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.core.parsing import UNREADABLE, describe_unreadable
from workbench.data.files import find_images, read_text, relative_name
from workbench.data.source import Source, SourceBox, frame_of_file, mislabelled
from workbench.records.types import Quarantined

__all__ = ()


def is_image_folder(source: Path) -> bool:
    """Whether there are images below ``source``."""
    return source.is_dir() and bool(find_images(source))


def read_images(source: Path) -> Source:
    """All images below ``source``, without labels."""
    frames = tuple(frame_of_file(file, source) for file in find_images(source))
    return Source(format="images", root=source, frames=frames)


def parse_lines(
    path: Path,
    root: Path,
    parse: Callable[[list[str], str], SourceBox],
    problems: list[Quarantined],
) -> tuple[tuple[SourceBox, ...], int]:
    """The boxes of a text file, and the number of lines that cannot be read.

    Each of these becomes a problem.
    """
    boxes: list[SourceBox] = []
    failed = 0
    name = relative_name(path, root)
    try:
        lines = read_text(path).splitlines()
    except ValueError as error:
        problems.append(mislabelled(name, str(error)))
        return (), 1
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            boxes.append(parse(line.split(), f"line {number}"))
        except UNREADABLE as error:
            failed += 1
            reason = describe_unreadable(error)
            problems.append(mislabelled(name, f"line {number}: {reason}"))
    return tuple(boxes), failed


def image_missing(annotation: Path, root: Path, boxes: tuple[SourceBox, ...] = ()) -> Quarantined:
    """A line for an annotation file without its image."""
    named = ", ".join(f"{box.detail} ({box.name})" for box in boxes)
    detail = "its image is away" + (f"; boxes left out with it: {named}" if named else "")
    return Quarantined(file=relative_name(annotation, root), reason="missing", detail=detail)
