"""Find and read the files of a source: one way for all readers.

Names and texts come from many tools and systems: linked folders, byte order marks, encodings,
numbers and flags as text. What cannot be read raises ``ValueError`` in plain words, which readers
turn into a line of the quarantine.
"""

from __future__ import annotations

import codecs
import math
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.parsing import parse_json, read_regular
from workbench.records.types import Quarantined

__all__ = ()

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff"}
)

_OTHER_KINDS = {
    "an unsupported image format": (
        *(".gif", ".ppm", ".pgm", ".pnm", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg"),
        *(".dng", ".cr2", ".nef", ".arw", ".raw", ".exr", ".tga", ".psd", ".mpo"),
    ),
    "a video": (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".ts", ".mpg", ".h264", ".hevc"),
    "an archive": (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"),
}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in _OTHER_KINDS.items() for suffix in suffixes}
_REMEDY = {
    "an unsupported image format": "convert it to PNG or JPEG",
    "a video": "extract its frames as images",
    "an archive": "unpack it",
}

_MAGIC = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
}

_MAX_EXACT_INTEGER = 2**53  # more than a record can hold
_MAX_LINK_BYTES = 1024
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "System Volume Information", "$RECYCLE.BIN"})

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FLAGS = {
    **dict.fromkeys(("1", "true", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "no", "n", "off", "", "none", "null", "unspecified"), False),
}


@dataclass(frozen=True)
class _Listing:
    """Files below a folder, sorted; ``problems`` are folders that cannot be read."""

    files: tuple[Path, ...]
    problems: tuple[Quarantined, ...] = ()


def list_folder(folder: Path) -> _Listing:
    """All files below ``folder``, also in linked folders, without hidden and system files.

    A folder that is reached twice, as through a link to a parent, is read once.
    """
    files: list[Path] = []
    problems: list[Quarantined] = []
    waiting, linked = [folder], list[Path]()
    visited: set[str] = set()
    while waiting or linked:
        current = waiting.pop() if waiting else linked.pop(0)
        try:
            identity = os.path.realpath(current)
            if identity in visited:
                continue
            visited.add(identity)
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            text = f"the folder cannot be read: {error.strerror or error}"
            problems.append(
                Quarantined(file=relative_name(current, folder), reason="unreadable", detail=text)
            )
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            path = current / entry.name
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:  # a link to what may not be seen
                text = f"it cannot be read: {error.strerror or error}"
                name = relative_name(path, folder)
                problems.append(Quarantined(file=name, reason="unreadable", detail=text))
                continue
            if is_folder:
                (linked if entry.is_symlink() else waiting).append(path)
            elif is_file:
                files.append(path)
            elif path.exists():
                detail = "it is not a regular file but a pipe, a socket or a device"
                name = relative_name(path, folder)
                problems.append(Quarantined(file=name, reason="unreadable", detail=detail))
            elif entry.is_symlink():
                detail = "a link to a file or folder that does not exist"
                name = relative_name(path, folder)
                problems.append(Quarantined(file=name, reason="missing", detail=detail))
    return _Listing(tuple(sorted(files)), tuple(problems))


def find_files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files below ``folder`` with one of the suffixes (lower case, with the dot), sorted."""
    wanted = frozenset(suffixes)
    return [path for path in list_folder(folder).files if path.suffix.lower() in wanted]


def find_images(folder: Path) -> list[Path]:
    """All image files below ``folder`` except hidden ones, sorted."""
    return find_files(folder, IMAGE_SUFFIXES)


def files_of_other_kinds(folder: Path) -> list[Quarantined]:
    """Images, videos and archives that no reader reads, and folders that cannot be read."""
    listing = list_folder(folder)
    problems = list(listing.problems)
    for path in listing.files:
        kind = _KIND_OF_SUFFIX.get(path.suffix.lower())
        if kind is not None:
            detail = f"{path.suffix.lower()} is {kind}: {_REMEDY[kind]}"
            name = relative_name(path, folder)
            problems.append(Quarantined(file=name, reason="unreadable", detail=detail))
        elif not path.suffix and (kind := _kind_by_content(path)):
            detail = f"{kind} without an ending: give its name one"
            name = relative_name(path, folder)
            problems.append(Quarantined(file=name, reason="unreadable", detail=detail))
        elif not path.suffix and (target := _link_saved_as_text(path)):
            detail = (
                f"a link to {target} that was saved as text: make it a link, or copy the target"
            )
            name = relative_name(path, folder)
            problems.append(Quarantined(file=name, reason="missing", detail=detail))
    return problems


def _kind_by_content(path: Path) -> str:
    """The kind of an image by its first bytes; empty if it is none."""
    try:
        with path.open("rb") as stream:
            head = stream.read(12)
    except OSError:
        return ""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def _link_saved_as_text(path: Path) -> str:
    """The target of a link that Git or an archive wrote as a text file; empty if it is none."""
    try:
        if path.stat().st_size > _MAX_LINK_BYTES:
            return ""
        target = path.read_bytes().decode().strip()
        return target if "/" in target and (path.parent / target).exists() else ""
    except (OSError, ValueError):
        return ""


def name_key(name: str) -> str:
    """What two spellings of a file name have in common: composition of accents, and case.

    macOS writes decomposed accents, and Windows finds names in any case.
    """
    return unicodedata.normalize("NFC", name).casefold()


def kind_of_other_file(path: Path) -> str | None:
    """``an archive``, ``a video`` or another kind that no reader reads."""
    return _KIND_OF_SUFFIX.get(path.suffix.lower())


def relative_name(file: Path, root: Path) -> str:
    """Path of ``file`` below ``root``, with slashes; its name if it is elsewhere."""
    try:
        return file.relative_to(root).as_posix()
    except ValueError:
        return file.name


def decode_text(content: bytes, declared: str | None = None) -> str:
    """Text of a file: by its byte order mark, the declared encoding, UTF-8, else Windows-1252.

    Raises:
        ValueError: The declared encoding is unknown or does not fit.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    if declared:
        try:
            return content.decode(declared)
        except LookupError:
            raise ValueError(f"unknown text encoding {declared!r}: save it as UTF-8") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not in the declared encoding {declared!r}: {error}") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def read_text(path: Path) -> str:
    """The text of a file without its byte order mark.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        return decode_text(read_regular(path))
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: The file cannot be read or is not JSON.
    """
    return parse_json(read_text(path))


def parse_number(value: Any, what: str = "value") -> float:
    """A number that may be written as text; NaN and infinity are left to the checks of boxes.

    Raises:
        ValueError: It is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{what} {_shown(value)} is not a number")
    try:
        if isinstance(value, str) and ("_" in value or not value.isascii()):
            raise ValueError  # Python reads 1_0 as 10
        return float(value)
    except (ValueError, OverflowError):
        hint = " (a decimal comma?)" if re.fullmatch(r"\s*-?\d+,\d+\s*", str(value)) else ""
        raise ValueError(f"{what} {_shown(value)} is not a number{hint}") from None


def parse_integer(value: Any, what: str = "value") -> int:
    """A whole number that may be written as text or with a decimal point, such as ``1.0e+00``.

    Raises:
        ValueError: It is not a whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= _MAX_EXACT_INTEGER:
            raise ValueError(f"{what} {_shown(value)} is too large")
        return value
    number = parse_number(value, what)
    if not math.isfinite(number) or number != int(number) or abs(number) >= _MAX_EXACT_INTEGER:
        raise ValueError(f"{what} {_shown(value)} is not a whole number")
    return int(number)


def parse_flag(value: Any, what: str = "flag") -> bool:
    """A flag that may be a number or text: 1, "1", "true", "yes".

    Raises:
        ValueError: It is neither true nor false.
    """
    flag = _FLAGS.get("" if value is None else str(value).strip().lower().removesuffix(".0"))
    if flag is None:
        raise ValueError(f"{what} {_shown(value)} is neither true nor false")
    return flag


def refuse_score(value: Any) -> None:
    """Refuse an annotation with a score: it is a model's output, not a label.

    Raises:
        ValueError: There is a score.
    """
    if value is not None and str(value).strip():
        raise ValueError(f"a model's output with its score {_shown(value)}, not a label")


def refuse_rotation(value: Any, unit: str = "degrees") -> None:
    """Refuse a box that is turned: its sides are those before the rotation.

    Raises:
        ValueError: It is turned, or the angle is not a number.
    """
    if value is not None and parse_number(value, "rotation"):
        raise ValueError(f"a box turned by {value} {unit}: export it as an upright box")


def parse_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Width and height; None if one of them is not known (missing, empty, 0 or negative)."""
    if any(value is None or str(value).strip() == "" for value in (width, height)):
        return None
    size = parse_integer(width, "width"), parse_integer(height, "height")
    return size if min(size) > 0 else None


def identity_of(value: Any) -> str:
    """An id as text: exporters write 1, "1", "1.0" and 1.0 for the same id."""
    if isinstance(value, str) and re.fullmatch(r"\d+\.0+", value):
        return value.partition(".")[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
