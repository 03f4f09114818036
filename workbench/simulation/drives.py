"""Rendered drives on disk, as a folder that the COCO reader ingests.

    images/DRIVE_0007.jpg    JPEG frames
    labels.coco.json         COCO, with drive, time and conditions of each image, and occlusion,
                             truncation and track of each box (``iscrowd`` 1: ignored)
    drives.json              vehicle, camera and calibration of each drive, ``"simulated": true``

The bytes depend only on seed, profile and the installed OpenCV and numpy.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from workbench.core import processes, workspace
from workbench.core.errors import ParameterError
from workbench.core.types import Json, Progress
from workbench.simulation import traffic
from workbench.simulation.scenario import CLASSES, Scenario

__all__ = ["write_drives"]

_JPEG_QUALITY = 90
_FIRMWARE = "renderer-1"
LABELS_FILE = "labels.coco.json"
DRIVES_FILE = "drives.json"


def write_drives(
    folder: Path,
    profile: str | traffic.FleetProfile = "standard",
    *,
    seed: int = 0,
    workers: int = 2,
    progress: Progress | None = None,
) -> Path:
    """Render a fleet of drives into ``folder``.

    Args:
        folder: Created if missing. Label files are written last, so a folder with them is complete.
            A repeated call with the same arguments writes equal bytes.
        profile: ``tiny``, ``standard``, ``long-tail`` or a `FleetProfile`.
        seed: The same profile and seed give the same drives.
        workers: Number of processes; 1 renders in this process.
        progress: Called after each drive with the number of frames done and in all.

    Returns:
        ``folder``.

    Raises:
        ParameterError: The profile is unknown or invalid, or the folder has other images.
    """
    chosen = _resolve_profile(profile)
    if workers < 1:
        raise ParameterError("workers must be at least 1", where=workers)
    scenarios = traffic.random_fleet(chosen, seed)
    _prepare_folder(folder, scenarios)
    images: list[Json] = []
    annotations: list[Json] = []
    for rows, boxes in _render_all(scenarios, folder, workers):
        first = len(images) + 1
        for offset, (row, row_boxes) in enumerate(zip(rows, boxes, strict=True)):
            images.append({"id": first + offset, **row})
            for box in row_boxes:
                annotations.append({"id": len(annotations) + 1, "image_id": first + offset, **box})
        if progress is not None:
            progress(len(images), chosen.frames)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    about = {
        "description": f"Simulated drives, profile {chosen.name}, seed {seed}. Nothing is real.",
        "simulated": True,
    }
    coco = {
        "info": about,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    drives = {"schema_version": 1, "drives": [_drive_row(scenario) for scenario in scenarios]}
    _write_json(folder / DRIVES_FILE, drives)
    _write_json(folder / LABELS_FILE, coco)
    return folder


def _prepare_folder(folder: Path, scenarios: tuple[Scenario, ...]) -> None:
    """Create the folder, or check that it has no other images."""
    if folder.exists() and not folder.is_dir():
        raise ParameterError("not a folder", where=folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    expected = {_image_name(scenario, i) for scenario in scenarios for i in range(scenario.frames)}
    other = [p.name for p in (folder / "images").iterdir() if f"images/{p.name}" not in expected]
    if other:
        raise ParameterError(
            f"folder has other images, such as {min(other)}",
            where=folder,
            hint="Choose an empty folder, or delete this one",
        )
    # Without labels the folder counts as incomplete, even if this process is killed.
    (folder / LABELS_FILE).unlink(missing_ok=True)


def _image_name(scenario: Scenario, index: int) -> str:
    return f"images/{scenario.drive}_{index:04d}.jpg"


def _resolve_profile(profile: str | traffic.FleetProfile) -> traffic.FleetProfile:
    if isinstance(profile, traffic.FleetProfile):
        return profile
    if profile not in traffic.PROFILES:
        raise ParameterError(
            f"unknown profile {profile!r}",
            hint=f"Profiles: {', '.join(traffic.PROFILES)}",
        )
    return traffic.PROFILES[profile]


def _write_json(path: Path, value: Json) -> None:
    workspace.write_atomic(path, json.dumps(value, indent=1).encode() + b"\n")


def _render_all(
    scenarios: tuple[Scenario, ...], folder: Path, workers: int
) -> Iterator[tuple[list[Json], list[list[Json]]]]:
    """COCO rows and boxes of each drive, in order."""
    if workers == 1 or len(scenarios) == 1:
        for scenario in scenarios:
            yield write_drive(scenario, folder)
        return
    # A forked child of a threaded parent (a notebook kernel) may hang; a fork server cannot.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(
        min(workers, len(scenarios)), context, initializer=processes.die_with_pool_owner
    ) as pool:
        yield from pool.map(write_drive, scenarios, [folder] * len(scenarios))


def write_drive(scenario: Scenario, folder: Path) -> tuple[list[Json], list[list[Json]]]:
    """Render one drive into ``folder``; its COCO image rows, and the boxes of each, without ids."""
    import cv2

    from workbench.simulation.rendering import render_frame

    cv2.setNumThreads(1)  # frames are rendered in parallel processes
    rows, boxes = [], []
    for index in range(scenario.frames):
        frame = render_frame(scenario, index)
        name = _image_name(scenario, index)
        encoded, data = cv2.imencode(
            ".jpg", frame.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        )
        if not encoded:
            raise ParameterError("OpenCV cannot encode the frame", where=name)
        (folder / name).write_bytes(data.tobytes())
        rows.append(
            {
                "file_name": name,
                "width": scenario.camera.width,
                "height": scenario.camera.height,
                "drive": scenario.drive,
                "index": index,
                "timestamp_us": round(scenario.time_s(index) * 1e6),
                "light": scenario.light,
                "weather": scenario.weather,
                "construction": frame.construction,
                "events": list(frame.events),
            }
        )
        boxes.append(
            [
                {
                    "category_id": CLASSES.index(box.cls) + 1,
                    "bbox": [round(v, 2) for v in (box.x, box.y, box.w, box.h)],
                    "area": round(box.w * box.h, 2),
                    "iscrowd": int(box.ignore),
                    "occluded": box.occluded,
                    "truncated": box.truncated,
                    "track": box.track,
                }
                for box in frame.boxes
                if box.cls in CLASSES
            ]
        )
    return rows, boxes


def _drive_row(scenario: Scenario) -> Json:
    camera = scenario.camera
    return {
        "id": scenario.drive,
        "vehicle": scenario.vehicle,
        "vehicle_type": scenario.vehicle_type,
        "camera_height_m": camera.height_m,
        "camera_pitch_deg": camera.pitch_deg,
        "sensor": f"rendered pinhole {camera.width}x{camera.height}",
        "firmware": _FIRMWARE,
        "calibration": {
            "id": f"{scenario.drive}-intrinsics",
            "fx": camera.fx,
            "fy": camera.fy,
            "cx": camera.cx,
            "cy": camera.cy,
        },
        "started_at": "unknown",
        "time_source": "simulated clock, microseconds from the start of the drive",
        "simulated": True,
    }
