"""KITTI object layout: ``image_2``, ``label_2`` and ``calib`` side by side.

Boxes are left, top, right, bottom in pixels counted from 0, taken as continuous. The benchmark
shuffled its frames, so file numbers say nothing of time; frames that share a calibration were
recorded in the same session and are kept together as a drive. Geiger et al., CVPR 2012.
"""

from __future__ import annotations

import re
from pathlib import Path

from workbench import digest
from workbench.data.source import (
    Source,
    SourceBox,
    SourceFrame,
    images_below,
    parse_name,
    relative,
)
from workbench.errors import DataError
from workbench.records.frames import UNKNOWN, Calibration, Drive
from workbench.records.types import Quarantined

_CAMERA = re.compile(r"^image_(\d)$")

# KITTI tells levels: fully visible, partly and largely occluded, unknown. These are nominal
# fractions for the levels, chosen here; level 3 stays unknown.
_OCCLUDED = {0: 0.0, 1: 0.4, 2: 0.8}


def looks_right(source: Path) -> bool:
    return _base(source) is not None


def read(source: Path) -> Source:
    """Frames of the left colour camera (``image_2``), else of the first camera there is.

    Raises:
        DataError: No ``image_N`` folder anywhere below.
    """
    images = _base(source)
    if images is None:
        raise DataError("no image_2 folder below", where=source, hint="Try another --format")
    base, camera = images.parent, images.name.removeprefix("image_")
    labels, calibs = base / f"label_{camera}", base / "calib"
    problems: list[Quarantined] = []
    drives: dict[str, Drive] = {}
    frames = []
    files = images_below(images)
    for file in files:
        drive = _drive(calibs / f"{file.stem}.txt", camera, source, problems)
        drives[drive.id] = drive
        boxes = _parse(labels / f"{file.stem}.txt", source, problems)
        frames.append(_frame(file, source, drive.id, boxes))
    stems = {file.stem for file in files}
    for path in sorted(labels.glob("*.txt")):
        if path.stem not in stems:
            name = relative(path, source)
            problems.append(Quarantined(file=name, reason="missing", detail="its image is away"))
    return Source(
        format="kitti",
        root=source,
        frames=tuple(frames),
        drives=drives,
        problems=tuple(problems),
    )


def _base(source: Path) -> Path | None:
    if not source.is_dir():
        return None
    folders = [source, *source.rglob("image_*")]
    found = [path for path in folders if _CAMERA.match(path.name) and path.is_dir()]
    return min(found, key=lambda path: (path.name != "image_2", str(path)), default=None)


def _drive(path: Path, camera: str, root: Path, problems: list[Quarantined]) -> Drive:
    if not path.is_file():
        return Drive(id=UNKNOWN)
    try:
        rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        matrix = [float(word) for word in rows[f"P{camera}"].split()]
        fx, cx, fy, cy = matrix[0], matrix[2], matrix[5], matrix[6]
    except (KeyError, ValueError, IndexError, UnicodeDecodeError) as error:
        detail = f"calibration cannot be read ({error!r}); the frame is kept without"
        problems.append(Quarantined(file=relative(path, root), reason="mislabelled", detail=detail))
        return Drive(id=UNKNOWN)
    name = f"calib-{digest.short(digest.of_json(matrix))}"
    calibration = Calibration(id=name, fx=fx, fy=fy, cx=cx, cy=cy)
    return Drive(id=name, calibration=calibration, sensor=f"image_{camera}")


def _parse(path: Path, root: Path, problems: list[Quarantined]) -> tuple[SourceBox, ...]:
    if not path.is_file():
        return ()
    boxes = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            boxes.append(_box(line.split(), f"line {number}"))
        except ValueError as error:
            detail = f"line {number}: {error}"
            entry = Quarantined(file=relative(path, root), reason="mislabelled", detail=detail)
            problems.append(entry)
    return tuple(boxes)


def _box(words: list[str], detail: str) -> SourceBox:
    if len(words) == 16:
        raise ValueError("sixteen columns: a model's output with its score is no label")
    if len(words) != 15:
        raise ValueError(f"{len(words)} columns instead of KITTI's 15")
    truncated, left, top, right, bottom = (float(words[column]) for column in (1, 4, 5, 6, 7))
    return SourceBox(
        name=words[0],
        corners=(left, top, right, bottom),
        detail=detail,
        occluded=_OCCLUDED.get(int(float(words[2]))),
        truncated=truncated if 0 <= truncated <= 1 else None,
    )


def _frame(file: Path, root: Path, drive: str, boxes: tuple[SourceBox, ...]) -> SourceFrame:
    name = relative(file, root)
    return SourceFrame(file=file, name=name, drive=drive, index=parse_name(name).index, boxes=boxes)
