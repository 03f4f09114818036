"""Plain folders of images: frames without labels. A folder, or a name's prefix, is a drive."""

from __future__ import annotations

from pathlib import Path

from workbench.data.source import Source, SourceFrame, images_below, parse_name, relative


def looks_right(source: Path) -> bool:
    return source.is_dir() and bool(images_below(source))


def read(source: Path) -> Source:
    """Every image below ``source``, in order of name."""
    frames = tuple(_frame(file, source) for file in images_below(source))
    return Source(format="images", root=source, frames=frames)


def _frame(file: Path, root: Path) -> SourceFrame:
    name = relative(file, root)
    parts = parse_name(name)
    return SourceFrame(
        file=file, name=name, drive=parts.drive, index=parts.index, counter=parts.counter
    )
