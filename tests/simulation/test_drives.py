"""The folder of rendered drives."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.data.ingest import ingest
from workbench.records.frames import Conditions, Drive, Light, Origin, Weather
from workbench.simulation.drives import DRIVES_FILE, LABELS_FILE, write_drives
from workbench.simulation.scenario import CLASSES
from workbench.simulation.traffic import FleetProfile

SMALL = FleetProfile("small", drives=10, frames_per_drive=2, width=240, height=144)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"), SMALL, workers=1)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_bytes_do_not_depend_on_workers_or_folder(folder: Path, tmp_path: Path) -> None:
    other = write_drives(tmp_path / "elsewhere", SMALL, workers=2)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert len(names) == SMALL.frames + 2
    here = {name: digest.of_file(folder / name) for name in names}
    assert here == {name: digest.of_file(other / name) for name in names}
    assert len(set(here.values())) == len(here), "two frames are the same picture"


def test_labels_are_valid_coco_with_boxes_inside_the_images(folder: Path) -> None:
    coco = _json(folder / LABELS_FILE)
    images = {row["id"]: row for row in coco["images"]}
    assert len(images) == len(coco["images"]) == SMALL.frames
    assert [c["name"] for c in coco["categories"]] == list(CLASSES)
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"]) > 50
    for row in coco["annotations"]:
        image = images[row["image_id"]]
        x, y, w, h = row["bbox"]
        assert w >= 1 and h >= 1 and x >= 0 and y >= 0
        assert x + w <= image["width"] + 1e-6 and y + h <= image["height"] + 1e-6
        assert 1 <= row["category_id"] <= len(CLASSES)
        assert 0 <= row["occluded"] <= 1 and 0 <= row["truncated"] <= 1
        assert row["iscrowd"] in (0, 1) and row["track"].startswith(image["drive"])


def test_images_decode_at_their_size_and_carry_conditions(folder: Path) -> None:
    for row in _json(folder / LABELS_FILE)["images"]:
        with Image.open(io.BytesIO((folder / row["file_name"]).read_bytes())) as image:
            image.load()
            assert image.size == (row["width"], row["height"]) == (SMALL.width, SMALL.height)
        Conditions(
            light=Light(row["light"]),
            weather=Weather(row["weather"]),
            construction=row["construction"],
        )
        assert row["timestamp_us"] == row["index"] * 500_000


def test_drives_are_marked_as_simulated(folder: Path) -> None:
    found = _json(folder / DRIVES_FILE)
    drives = [Drive.model_validate(row) for row in found["drives"]]
    assert found["schema_version"] == 1
    assert all(drive.simulated for drive in drives)
    assert _json(folder / LABELS_FILE)["info"]["simulated"] is True
    named = {row["drive"] for row in _json(folder / LABELS_FILE)["images"]}
    assert {drive.id for drive in drives} == named
    assert len({drive.calibration.id for drive in drives}) == len(drives)


def test_progress_counts_every_frame_once(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    profile = FleetProfile("two", drives=2, frames_per_drive=1, width=96, height=64)
    write_drives(tmp_path, profile, workers=1, progress=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]


def test_invalid_arguments_are_rejected_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="standard, tiny"):
        write_drives(tmp_path / "a", "huge")
    with pytest.raises(ParameterError, match="workers"):
        write_drives(tmp_path / "b", SMALL, workers=0)
    assert not list(tmp_path.iterdir())


def test_folder_with_other_images_is_rejected_and_equal_images_are_replaced(tmp_path: Path) -> None:
    profile = FleetProfile("one", drives=1, frames_per_drive=1, width=96, height=64)
    write_drives(tmp_path, profile, workers=1)
    before = digest.of_file(tmp_path / LABELS_FILE)
    write_drives(tmp_path, profile, workers=1)
    assert digest.of_file(tmp_path / LABELS_FILE) == before
    with pytest.raises(ParameterError, match="sim-0-0000_0000"):
        write_drives(tmp_path, profile, seed=1, workers=1)
    with pytest.raises(ParameterError, match="folder"):
        write_drives(tmp_path / LABELS_FILE, profile, workers=1)


def test_coco_reader_reads_every_frame_and_box(folder: Path, tmp_path: Path) -> None:
    result = ingest(Workspace(tmp_path / ".workbench"), folder, name="rendered", workers=1)
    boxes = _json(folder / LABELS_FILE)["annotations"]
    assert not result.quarantine
    assert len(result.dataset.frames) == SMALL.frames
    assert len(result.dataset.labels) == len(boxes)
    assert {label.origin for label in result.dataset.labels} == {Origin.RENDERED}
    assert all(drive.simulated for drive in result.dataset.drives)
