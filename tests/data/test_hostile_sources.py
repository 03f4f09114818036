"""Whatever stands in one entry of a source, the others are read and recorded."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources import CATEGORIES, coco_box, coco_image, write_picture
from workbench import data
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.records.store import Store


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


HOSTILE: list[Any] = [
    *(None, True, 0, -1, 0.5, -0.0, 10**17, 10**400, "@digits@", 1e308, float("inf")),
    *(float("-inf"), float("nan"), "", " ", "1e999", "nan", "9" * 5000, "x" * 5000, "a\x00b"),
    *("line\nline", "\ud800", "\u202e", "\x1b[31mred", "../../etc/passwd", "/dev/zero", "é" * 300),
    *("=1+1", "<script>", "${env:HOME}", "%s%n"),
    *([], {}, [[]], [{}], {"a": 1}, {"": []}, [None], [float("inf")] * 4, ["x"] * 4, _deep(60)),
    *([1, 2, 3, 4, 5], {"x": {"y": {}}}, _deep(98)),
]


def coco() -> Any:
    images = [coco_image(n, f"images/a_{n:04d}.jpg", drive="d", index=n) for n in range(3)]
    images[0] |= {"timestamp_us": 5, "light": "night", "weather": "rain", "events": ["cut_in"]}
    boxes = [coco_box(n, n, [4, 5, 20, 10], track=f"t{n}", occluded=0.5) for n in range(3)]
    boxes[0] |= {"iscrowd": 0, "truncated": 0.1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    return {"images": images, "annotations": boxes, "categories": list(CATEGORIES)}


def scalabel() -> Any:
    return [
        {
            "name": f"images/a_{n:04d}.jpg",
            "videoName": "v",
            "frameIndex": n,
            "timestamp": n * 100,
            "attributes": {"timeofday": "night", "weather": "rainy"},
            "size": {"width": 64, "height": 48},
            "labels": [
                {
                    "id": n,
                    "category": "car",
                    "attributes": {"occluded": False, "truncated": True},
                    "box2d": {"x1": 4, "y1": 5, "x2": 24, "y2": 15},
                },
                {"id": 9, "category": "car", "poly2d": [{"vertices": [[1, 1], [9, 1], [9, 9]]}]},
            ],
        }
        for n in range(3)
    ]


def fiftyone() -> Any:
    return {
        "samples": [
            {
                "filepath": f"data/a_{n:04d}.jpg",
                "metadata": {"width": 64, "height": 48},
                "ground_truth": {
                    "_cls": "Detections",
                    "detections": [
                        {"label": "car", "bounding_box": [0.1, 0.1, 0.3, 0.3], "index": n}
                    ],
                },
            }
            for n in range(3)
        ]
    }


def drives() -> Any:
    drive = {"id": "a", "vehicle_type": "truck", "camera_height_m": 2.3}
    frame = {"drive": "a", "index": 4, "timestamp_us": 133333, "events": ["cut_in"]}
    conditions = {"conditions": {"light": "night"}}
    return {"drives": [drive], "frames": {"images/a_0000.jpg": {**frame, **conditions}}}


SOURCES = {
    "coco": ("labels.coco.json", coco, "images"),
    "scalabel": ("labels.json", scalabel, "images"),
    "fiftyone": ("samples.json", fiftyone, "data"),
    "images": ("drives.json", drives, "images"),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values of the first entries."""
    yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = list(enumerate(value))[:1]
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    body = copy.deepcopy(body)
    target = body
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return body


def attacks(layout: str) -> list[tuple[tuple[Any, ...], Any]]:
    _, make, _ = SOURCES[layout]
    return [(path, value) for path in places(make()) for value in HOSTILE]


def run_attack(
    workspace: Workspace,
    source: Path,
    layout: str,
    path: tuple[Any, ...],
    value: Any,
) -> int:
    """The number of frames that were recorded; 0 where the source was refused."""
    name, make, _ = SOURCES[layout]
    text = json.dumps(changed(make(), path, value))
    (source / name).write_text(text.replace('"@digits@"', "9" * 5000))
    try:
        result = data.ingest(workspace, source, name="d", format=layout, workers=1)
    except WorkbenchError as error:
        assert len(str(error)) < 3000
        return 0
    result.save(Store(workspace))
    for entry in result.quarantine:
        assert len(entry.detail) < 3000
        (entry.file + entry.detail).encode()
    return len(result.dataset.frames)


def make_source(tmp_path: Path, layout: str) -> Path:
    source = tmp_path / "source"
    for number in range(3):
        write_picture(source / SOURCES[layout][2] / f"a_{number:04d}.jpg", number)
    return source


def attack_all(tmp_path: Path, layout: str, share: float) -> None:
    workspace, source = Workspace(tmp_path / "w"), make_source(tmp_path, layout)
    chance = random.Random(7)  # noqa: S311 - which attacks are tried
    for path, value in attacks(layout):
        if chance.random() >= share:
            continue
        frames = run_attack(workspace, source, layout, path, value)
        inner = [key for key in path if isinstance(key, int)]
        if layout in ("coco", "scalabel", "fiftyone") and inner:  # one entry of a list
            assert frames >= 2, (path, repr(value)[:60])


@pytest.mark.parametrize("layout", SOURCES)
def test_one_bad_entry_stops_nothing_else(tmp_path: Path, layout: str) -> None:
    attack_all(tmp_path, layout, share=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SOURCES)
def test_no_bad_entry_stops_anything_else(tmp_path: Path, layout: str) -> None:
    attack_all(tmp_path, layout, share=1.0)


def test_pipes_sockets_and_devices_are_named_and_never_read(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = tmp_path / "s"
    write_picture(source / "a_0001.jpg", 1)
    for name in ("pipe.jpg", "annotations.json", "data.yaml", "drives.txt"):
        os.mkfifo(source / name)
    for name in ("zero.jpg", "obj.names", "b.xml"):
        (source / name).symlink_to("/dev/zero")
    with (source / "large.jpg").open("wb") as stream:
        stream.truncate(20 * 2**30)  # takes no room on the disk
    for kind in ("auto", "images", "yolo", "voc", "coco"):
        try:
            found = data.ingest(workspace, source, name="x", format=kind)
        except WorkbenchError as error:
            assert kind != "images", error
            continue
        details = {one.file: one.detail for one in found.quarantine}
        assert len(found.dataset.frames) == 1
        assert "not a regular file" in details["pipe.jpg"]
        assert "not a regular file" in details["zero.jpg"]
        assert "limit" in details["large.jpg"]
