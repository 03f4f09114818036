"""What file names say: the drive, the frame number, or the time of a frame.

Numbers of four to nine digits count frames. Longer ones are times since an epoch if they lie
between 1979 and 2099 in seconds, milliseconds, microseconds or nanoseconds; these ranges do not
overlap.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import PurePosixPath

from workbench.records.frames import UNKNOWN

__all__ = ()

_FRAME_COUNTER = re.compile(r"^(?P<drive>.*?)[_\-.]?(?:frame|f)?(?<!\d)(?P<counter>\d{4,9})$")
_LAST_NUMBER = re.compile(r"(\d{1,9})$")
_CLOCK = re.compile(r"^(?P<drive>.*?)[_\-.]*(?<!\d)(?P<time>[1-9]\d{9,19})$")
_SECONDS_AND_FRACTION = re.compile(
    r"^(?P<drive>.*?)[_\-.]*(?<!\d)(?P<seconds>[1-9]\d{8,9})"
    # A dot is a decimal point; behind another separator, only nine digits cannot be a counter.
    r"(?:\.(?P<fraction>\d{1,9})|[_\-](?P<nanoseconds>\d{9}))$"
)
_DATE = re.compile(
    r"^(?P<drive>.*?)[_\-. ]*(?<!\d)(?P<year>(?:19|20)\d\d)(?P<sep>[-_.]?)(?P<month>\d\d)(?P=sep)"
    r"(?P<day>\d\d)[-_T. ]*(?P<hour>\d\d)[-_:.h]?(?P<minute>\d\d)[-_:.m]?(?P<second>\d\d)s?"
    # A separated number of four or more digits counts frames, unless a decimal point precedes it.
    r"(?:[.,](?P<decimals>\d{1,9})|[_\-]?(?P<milliseconds>\d{3})|(?P<microseconds>\d{6}))?Z?$"
)
# BDD100K names an image RIDE-VIDEO in hexadecimal digits.
_RIDE_AND_VIDEO = re.compile(r"^(?=.*[a-f])([0-9a-f]{8})-[0-9a-f]{8}$")

_SECONDS_AND_NUMBER = re.compile(r"^(?P<before>.*\d)[_\-](?P<number>\d{3}|\d{6})$")
_MAX_GAP_US = 10_000_000  # between seconds that follow each other

_EARLIEST_S, _LATEST_S = 300_000_000, 4_100_000_000
_UNITS_PER_S = {"s": 1, "ms": 1_000, "µs": 1_000_000, "ns": 1_000_000_000}

# Folders that say nothing about the drive.
_LAYOUT_FOLDERS = frozenset(
    {
        *("images", "image", "img", "data", "train", "val", "valid", "test", "training"),
        *("testing", "JPEGImages", "train2017", "val2017", "test2017"),
    }
)


@dataclass(frozen=True)
class _NameParts:
    """What a file name says.

    Attributes:
        counter: Frame number; None where the number does not count frames.
        timestamp_us: Time of the frame, µs.
        clock: Unit of the time (s, ms, µs, ns), or ``date``.
    """

    drive: str
    index: int
    counter: int | None
    timestamp_us: int | None = None
    clock: str | None = None


def parse_file_name(name: str) -> _NameParts:
    """Parse ``Seq05VD_f04530.jpg`` as frame 4530 of drive ``Seq05VD``.

    Without a name before the number, the drive is the folder, and without a meaningful folder it is
    ``unknown``. It is never the name of the source, which may be moved. The index of a frame whose
    name is a time is 0: only all frames of a drive together tell its position.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    folder = "/".join(meaningful_folders(path))
    timed = _parse_time(path.stem)
    if timed is not None:
        prefix, timestamp_us, clock = timed
        return _NameParts(_join(folder, prefix), 0, None, timestamp_us, clock)
    ride = _RIDE_AND_VIDEO.match(path.stem)
    if ride:
        return _NameParts(_join(folder, ride[1]), 0, None)
    counted = _FRAME_COUNTER.match(path.stem)
    if counted:
        number = int(counted["counter"])
        return _NameParts(_join(folder, counted["drive"]), number, number)
    numbered = _LAST_NUMBER.search(path.stem)
    return _NameParts(folder or UNKNOWN, int(numbered[1]) if numbered else 0, None)


def parse_names_with_fraction(names: Iterable[str]) -> dict[str, _NameParts]:
    """The names that are seconds and a fraction, such as ``run/1670577347-002843.jpg``.

    Such a number may also be a frame number behind the start of a recording. It is a fraction where
    the seconds of a folder follow each other and the number fills its digits, as no counter does.
    """
    groups: dict[tuple[str, int], list[tuple[str, int, str]]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        match = _SECONDS_AND_NUMBER.match(path.stem)
        before = _parse_time(match["before"]) if match else None
        if match and before and before[2] in ("s", "date"):
            drive = _join("/".join(meaningful_folders(path)), before[0])
            groups[drive, len(match["number"])].append((name, before[1], match["number"]))
    found: dict[str, _NameParts] = {}
    for (drive, _), rows in groups.items():
        seconds = sorted({time_us for _, time_us, _ in rows})
        gaps = sorted(later - earlier for earlier, later in pairwise(seconds))
        if gaps and gaps[len(gaps) // 2] <= _MAX_GAP_US and any(n[0] != "0" for *_, n in rows):
            for name, time_us, number in rows:
                time = time_us + _microseconds(number)
                found[name] = _NameParts(drive, 0, None, time, "s")
    return found


def meaningful_folders(path: PurePosixPath) -> tuple[str, ...]:
    """The folders of a path that are more than a layout (``images``, ``train``, ``image_2``)."""
    return tuple(
        part
        for part in path.parts[:-1]
        if part not in _LAYOUT_FOLDERS
        and part not in (".", "..", "/")
        and re.fullmatch(r"image_\d|[A-Za-z]:", part) is None
    )


def ride_of(video: str) -> str:
    """The ride of a BDD100K video, or the name of any other video."""
    match = _RIDE_AND_VIDEO.match(video)
    return match[1] if match else video


def _join(folder: str, prefix: str) -> str:
    return "/".join(part for part in (folder, prefix) if part) or UNKNOWN


def _parse_time(stem: str) -> tuple[str, int, str] | None:
    """The text before a time, the time in µs and its unit."""
    date = _DATE.match(stem)
    if date:
        fields = ("year", "month", "day", "hour", "minute", "second")
        fraction = date["decimals"] or date["milliseconds"] or date["microseconds"] or ""
        try:
            moment = datetime(*(int(date[field]) for field in fields), tzinfo=UTC)  # type: ignore[misc, arg-type]
        except ValueError:  # the thirteenth month: a number that only looks like a date
            pass
        else:
            return (
                date["drive"],
                int(moment.timestamp()) * 1_000_000 + _microseconds(fraction),
                "date",
            )
    split = _SECONDS_AND_FRACTION.match(stem)
    if split and _EARLIEST_S <= int(split["seconds"]) < _LATEST_S:
        fraction = split["fraction"] or split["nanoseconds"]
        time_us = int(split["seconds"]) * 1_000_000 + _microseconds(fraction)
        return split["drive"], time_us, "s"
    clock = _CLOCK.match(stem)
    if clock:
        value = int(clock["time"])
        for unit, per_s in _UNITS_PER_S.items():
            if _EARLIEST_S * per_s <= value < _LATEST_S * per_s:
                return clock["drive"], value * 1_000_000 // per_s, unit
    return None


def _microseconds(decimals: str) -> int:
    return int(decimals[:6].ljust(6, "0")) if decimals else 0
