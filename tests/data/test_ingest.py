from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.data.sources import coco_box, coco_image, coco_source, picture, write_coco, write_picture
from workbench import data
from workbench.core import digest
from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import Workspace
from workbench.records import dataset as stored
from workbench.records.frames import ANY_CLASS, Origin
from workbench.records.store import Store


def _reasons(ingested: data.IngestResult) -> dict[str, str]:
    return {entry.file: entry.reason for entry in ingested.quarantine}


def test_frames_are_named_by_digest_and_stored_in_the_media_folder(
    workspace: Workspace, tmp_path: Path
) -> None:
    ingested = data.ingest(workspace, coco_source(tmp_path / "s"), name="d")
    assert len(ingested.dataset.frames) == 4
    for frame in ingested.dataset.frames:
        path = stored.media_path(workspace, frame)
        assert digest.of_file(path) == frame.id
        assert path.read_bytes() == (tmp_path / "s" / ingested.sources[frame.id]).read_bytes()
    assert {label.origin for label in ingested.dataset.labels} == {Origin.IMPORTED}
    assert {label.annotator for label in ingested.dataset.labels} == {"import:coco"}


def test_the_digest_is_independent_of_path_order_and_workers(
    workspace: Workspace, tmp_path: Path
) -> None:
    first = coco_source(tmp_path / "first", frames=70)
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(first, moved)
    body = json.loads((moved / "labels.coco.json").read_text())
    body["images"].reverse()
    body["annotations"].reverse()
    (moved / "labels.coco.json").write_text(json.dumps(body))
    store = Store(workspace)
    one = data.ingest(workspace, first, name="d", workers=1)
    other = Workspace(tmp_path / "other")
    two = data.ingest(other, moved, name="d", workers=2)
    assert one.save(store) == two.save(Store(other))
    assert one.save(store, data.assign_roles(one.dataset)) == two.save(
        Store(other), data.assign_roles(two.dataset)
    )


def test_invalid_images_are_quarantined_with_a_reason(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "s"
    good = write_picture(source / "images" / "a_0001.jpg", 1)
    images = source / "images"
    (images / "a_0002.jpg").write_bytes(picture(2)[:-400])
    (images / "a_0003.jpg").write_bytes(b"")
    (images / "a_0004.jpg").write_bytes(b"not an image at all")
    shutil.copy(good, images / "a_0005.jpg")
    write_picture(images / "a_0006.jpg", 6)
    turned = Image.open(io.BytesIO(picture(7)))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(images / "a_0007.jpg", exif=exif)
    names = [f"images/a_{number:04d}.jpg" for number in range(1, 9)]
    rows = [coco_image(number, name) for number, name in enumerate(names)]
    rows[5]["width"] = 999
    ingested = data.ingest(workspace, write_coco(source, rows, []), name="d")
    assert [ingested.sources[frame.id] for frame in ingested.dataset.frames] == names[:1]
    assert _reasons(ingested) == {
        names[1]: "unreadable",
        names[2]: "unreadable",
        names[3]: "unreadable",
        names[4]: "duplicate",
        names[5]: "mislabelled",
        names[6]: "mislabelled",
        names[7]: "missing",
    }


def test_an_invalid_label_is_quarantined_without_its_frame(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = tmp_path / "s"
    write_picture(source / "a_0001.jpg", 1)
    boxes = [
        coco_box(1, 0, [4, 5, 20, 10]),
        coco_box(2, 0, [4, 5, 20, 10]),
        coco_box(3, 0, [4, 5, 0, 10]),
        coco_box(4, 0, [-30, 5, 40, 10]),
        coco_box(5, 0, [4, 5, 9, 9], category=3),
        coco_box(6, 0, [4, 5, 9, float("nan")]),
        coco_box(7, 77, [4, 5, 9, 9]),
        coco_box(8, 0, [4, 5]),  # type: ignore[list-item]
        coco_box(9, 0, [4, 5, 9, 9], category=42),
        coco_box(10, 0, [-0.5, 5, 9, 43.9], category=2, iscrowd=1, occluded=0.25, track=3),
    ]
    ingested = data.ingest(
        workspace, write_coco(source, [coco_image(0, "a_0001.jpg")], boxes), name="d"
    )
    reasons = sorted((entry.detail.split(":")[0], entry.reason) for entry in ingested.quarantine)
    assert reasons == [
        ("annotation 2", "duplicate"),
        ("annotation 3", "degenerate"),
        ("annotation 4", "out-of-bounds"),
        ("annotation 5", "unknown-class"),
        ("annotation 6", "degenerate"),
        ("annotation 7", "mislabelled"),
        ("annotation 8", "mislabelled"),
        ("annotation 9", "unknown-class"),
    ]
    car, person = ingested.dataset.labels
    assert (car.cls, car.box.xyxy) == ("car", (4, 5, 24, 15))
    assert (person.cls, person.box.xyxy) == ("pedestrian", (0, 5, 8.5, 48))
    assert (person.ignore, person.occluded, person.track) == (True, 0.25, "3")


def test_dropped_and_ignored_classes_are_not_quarantined(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = tmp_path / "s"
    write_picture(source / "a_0001.jpg", 1)
    boxes = [coco_box(1, 0, [4, 5, 9, 9], category=3), coco_box(2, 0, [30, 5, 9, 9], category=2)]
    write_coco(source, [coco_image(0, "a_0001.jpg")], boxes)
    schema = data.with_mapping(data.FRONT_CAMERA, {"Hovercraft": "ignore", "person": "drop"})
    ingested = data.ingest(workspace, source, name="d", schema=schema)
    assert not ingested.quarantine
    assert [(label.cls, label.ignore) for label in ingested.dataset.labels] == [(ANY_CLASS, True)]


def test_unusual_pixel_formats_are_accepted(workspace: Workspace, tmp_path: Path) -> None:
    for number, (mode, suffix) in enumerate([("L", "png"), ("RGBA", "png"), ("CMYK", "jpg")]):
        path = tmp_path / "s" / f"a_{number:04d}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, (8, 6), 50 + number).save(path)
    Image.new("I;16", (8, 6), 4000).save(tmp_path / "s" / "a_0009.png")
    (tmp_path / "s" / "a_0010.jpg").write_bytes(picture(3, "PNG"))
    ingested = data.ingest(workspace, tmp_path / "s", name="d")
    assert not ingested.quarantine
    assert [frame.suffix for frame in ingested.dataset.frames] == [
        ".png",
        ".png",
        ".jpg",
        ".png",
        ".png",
    ]


def test_timestamps_from_frame_numbers_are_marked_as_assumed(
    workspace: Workspace, tmp_path: Path
) -> None:
    for number in (30, 60):
        write_picture(tmp_path / "s" / f"drive_f{number:05d}.jpg", number)
    dataset = data.ingest(workspace, tmp_path / "s", name="d", frame_rate=15).dataset
    assert [frame.timestamp_us for frame in dataset.frames] == [2_000_000, 4_000_000]
    assert dataset.drives[0].id == "drive"
    assert dataset.drives[0].time_source == "frame number at 15 Hz (assumed)"


def test_drives_json_overrides_annotations_and_marks_rendered_labels(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = coco_source(tmp_path / "s", frames=2)
    notes = {
        "drives": [{"id": "a", "vehicle_type": "truck", "camera_height_m": 2.3, "simulated": True}],
        "frames": {
            "images/a_0000.jpg": {
                "index": 9,
                "timestamp_us": 5,
                "conditions": {"light": "night"},
                "events": ["cut_in"],
            }
        },
    }
    (source / "drives.json").write_text(json.dumps(notes))
    dataset = data.ingest(workspace, source, name="d").dataset
    first, second = dataset.frames
    assert (first.index, first.timestamp_us, first.conditions.light.value) == (9, 5, "night")
    assert first.events == ("cut_in",)
    assert dataset.drive_by_id["a"].camera_height_m == 2.3
    assert dataset.simulated
    origins = {label.frame: label.origin for label in dataset.labels}
    assert origins == {first.id: Origin.RENDERED, second.id: Origin.IMPORTED}


def test_an_invalid_drives_json_is_an_error_with_the_field(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = coco_source(tmp_path / "s")
    (source / "drives.json").write_text('{"drives": [{"id": "a", "vehicle_type": "boat"}]}')
    with pytest.raises(DataError, match=r"drives\.0\.vehicle_type"):
        data.ingest(workspace, source, name="d")


def test_image_names_outside_the_source_are_not_read(workspace: Workspace, tmp_path: Path) -> None:
    source = coco_source(tmp_path / "s", frames=1)
    write_picture(tmp_path / "secret.jpg", 9)
    body = json.loads((source / "labels.coco.json").read_text())
    body["images"].append(coco_image(9, "../secret.jpg"))
    (source / "labels.coco.json").write_text(json.dumps(body))
    ingested = data.ingest(workspace, source, name="d")
    assert _reasons(ingested) == {"../secret.jpg": "missing"}


def test_parameters_are_checked_before_anything_is_read(
    workspace: Workspace, tmp_path: Path
) -> None:
    for arguments in ({"name": "a/b"}, {"name": "a", "workers": 0}, {"name": "a", "frame_rate": 0}):
        with pytest.raises(ParameterError):
            data.ingest(workspace, tmp_path, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="no such source"):
        data.ingest(workspace, tmp_path / "away", name="a")


def test_no_usable_frames_is_an_error_with_the_reason(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match=r"no usable frames \(unreadable\)"):
        data.ingest(workspace, tmp_path / "s", name="d")


def test_damaged_media_is_written_again(workspace: Workspace, tmp_path: Path) -> None:
    source = coco_source(tmp_path / "s", frames=1)
    frame = data.ingest(workspace, source, name="d").dataset.frames[0]
    stored.media_path(workspace, frame).write_bytes(b"half")
    data.ingest(workspace, source, name="d")
    assert digest.of_file(stored.media_path(workspace, frame)) == frame.id


def test_ingest_works_with_threads_and_without_a_main_guard(tmp_path: Path) -> None:
    # As in a notebook kernel: no file to import, and other threads alive.
    source = coco_source(tmp_path / "s", frames=70)
    code = f"""
import threading, time
threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
from pathlib import Path
from workbench import data
from workbench.core.workspace import Workspace
place = Workspace(Path({str(tmp_path / "home")!r}))
print(len(data.ingest(place, Path({str(source)!r}), name="d", workers=2).dataset.frames))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "70"


def test_real_drives(workspace: Workspace, shared_data: Path) -> None:
    ingested = data.ingest(workspace, shared_data / "camvid", name="camvid")
    dataset = ingested.dataset
    assert (len(dataset.frames), len(dataset.labels), len(dataset.drives)) == (396, 3823, 3)
    assert not ingested.quarantine
    assert {frame.conditions.light.value for frame in dataset.frames} == {"day", "dusk"}
