"""What readers share: finding the image an annotation names, lines of text files, image folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from workbench.core.parsing import UNREADABLE, describe_unreadable
from workbench.data.files import find_images, name_key, read_text, relative_name
from workbench.data.names import meaningful_folders
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


_ANNOTATION_FOLDERS = frozenset(
    {"annotations", "annotation", "labels", "label", "labels_coco", "json", "det_20"}
)


@dataclass(frozen=True)
class Claim:
    """An entry of an annotation file about an image.

    Attributes:
        name: The image as the entry names it.
        where: The annotation file, relative to the source.
    """

    name: str
    where: str
    frame: SourceFrame


def images_root(source: Path) -> Path:
    """The folder with the images of a source, which may be an annotation file.

    The images of ``annotations/instances.json`` lie beside ``annotations`` if it has none itself.
    """
    if source.is_dir():
        return source
    folder = source.absolute().parent
    for _ in range(2):
        if folder.name.lower() not in _ANNOTATION_FOLDERS or find_images(folder):
            break
        folder = folder.parent
    return folder


class ImageFinder:
    """Finds images where annotation files usually have them, and never outside the source."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str, beside: Path) -> tuple[Path | None, str]:
        """The image of a name, or None and the reason.

        Args:
            beside: Folder of the annotation file.
        """
        outside = is_outside(name)
        # Some exporters write names as in a URL: "my%20car.jpg", "https://host/a.jpg?token=1".
        spelled = [name, name.strip(), unquote(name)]
        if "://" in name:
            spelled.append(unquote(re.split("[?#]", name.partition("://")[2])[0]))
        names = dict.fromkeys(each.replace("\\", "/") for each in spelled)
        pure = PurePosixPath(name.replace("\\", "/"))
        for pure in map(PurePosixPath, names):
            if not outside and ".." not in pure.parts and not pure.is_absolute():
                folders = (beside, beside / "images", self.root, self.root / "images")
                for folder in dict.fromkeys(folders):
                    try:
                        if (folder / pure).is_file():
                            return folder / pure, ""
                    except OSError as error:  # such as a name that is too long
                        return None, f"no such file: {error.strerror}"
            alike = self._named(pure)
            alike = [path for path in alike if path.name == pure.name] or alike
            if alike:
                break
        if len(alike) == 1 and _agree(pure, alike[0].relative_to(self.root)):
            return alike[0], ""
        reason = "names above or outside the folder are not followed" if outside else "no such file"
        if alike:
            named = ", ".join(relative_name(path, self.root) for path in alike[:3])
            reason += f"; of this name in another folder: {named}"
        elif alike := self._named(PurePosixPath(pure.stem)):
            reason += f"; with another ending there is {relative_name(alike[0], self.root)}"
        return None, reason

    def _named(self, name: PurePosixPath) -> list[Path]:
        if self._by_name is None:
            self._by_name = {}
            for path in find_images(self.root):
                self._by_name.setdefault(name_key(path.name), []).append(path)
                # Some sources name images without their suffix.
                self._by_name.setdefault(name_key(path.stem), []).append(path)
        return self._by_name.get(name_key(name.name), [])


def is_outside(name: str) -> bool:
    """Whether the name of an image leads out of the source, as an absolute one does."""
    pure = PurePosixPath(name.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts or ":" in name.replace("\\", "/").split("/")[0]


def _agree(named: PurePosixPath, actual: Path) -> bool:
    """Whether two paths may be one image: one's folders end with the other's.

    ``day/1.png`` is not ``night/1.png``, but may be ``1.png`` or ``images/1.png``.
    """
    one, other = (
        tuple(map(name_key, meaningful_folders(path)))
        for path in (named, PurePosixPath(actual.as_posix()))
    )
    short, long = sorted((one, other), key=len)
    return not short or long[-len(short) :] == short


def settle_claims(claims: list[Claim]) -> tuple[tuple[SourceFrame, ...], list[Quarantined]]:
    """One frame per image, and the claims that contradict each other.

    Entries that name one image alike and agree about it are joined with their boxes. Others are
    left out together with their boxes: nobody knows which of them is right.
    """
    by_file: dict[Path, list[Claim]] = {}
    for claim in claims:
        by_file.setdefault(claim.frame.file, []).append(claim)
    frames, problems = [], []
    for rivals in by_file.values():
        first = rivals[0]
        if all(_same_image(first, other) for other in rivals[1:]):
            boxes = tuple(box for claim in rivals for box in claim.frame.boxes)
            failed = sum(claim.frame.failed for claim in rivals)
            sizes = [claim.frame.size for claim in rivals if claim.frame.size is not None]
            size = sizes[0] if sizes else None
            frames.append(replace(first.frame, boxes=boxes, failed=failed, size=size))
            continue
        for claim in rivals:
            detail = f"{len(rivals)} contradictory entries in {claim.where} claim this image"
            named = left_out_text(claim.frame.boxes)
            problems.append(mislabelled(claim.frame.name, f"{detail} (as {claim.name!r}){named}"))
    return tuple(frames), problems


def _same_image(one: Claim, other: Claim) -> bool:
    def identity(claim: Claim) -> tuple[str, ...]:
        path = PurePosixPath(claim.name.replace("\\", "/"))
        return (*meaningful_folders(path), path.name)

    sizes = {claim.frame.size for claim in (one, other) if claim.frame.size is not None}
    return (
        identity(one) == identity(other)
        and len(sizes) <= 1
        and one.frame.drive == other.frame.drive
        and one.frame.timestamp_us == other.frame.timestamp_us
    )


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
        if not line.strip() or line.lstrip().startswith("#"):
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
    detail = "its image is missing" + (f"; boxes left out with it: {named}" if named else "")
    return Quarantined(file=relative_name(annotation, root), reason="missing", detail=detail)
