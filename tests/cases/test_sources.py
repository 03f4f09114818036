"""Sources as they are in the wild; each test is one kind of fault from public bug reports."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.sources import (
    HEIGHT,
    WIDTH,
    coco_box,
    coco_image,
    picture,
    write_coco,
    write_picture,
)
from workbench import data
from workbench.core.errors import DataError
from workbench.core.workspace import Workspace
from workbench.data import readers
from workbench.data.names import parse_file_name

BOX = [4.0, 5.0, 20.0, 10.0]
CORNERS = (4, 5, 24, 15)


def _ingest(workspace: Workspace, source: Path, **more: Any) -> data.IngestResult:
    return data.ingest(workspace, source, name="d", workers=1, **more)


def _labels(result: data.IngestResult) -> list[tuple[str, str, tuple[float, ...]]]:
    return sorted(
        (result.sources[label.frame], label.cls, label.box.xyxy) for label in result.dataset.labels
    )


def _text(result: data.IngestResult) -> str:
    return "\n".join(f"{entry.file}: {entry.detail}" for entry in result.quarantine)


def _yolo(folder: Path, lines: dict[str, str], description: str = "names: [car, person]") -> Path:
    for number, (name, text) in enumerate(lines.items()):
        write_picture(folder / "images" / f"{name}.png", number)
        labels = folder / "labels" / f"{name}.txt"
        labels.parent.mkdir(exist_ok=True)
        labels.write_bytes(text.encode())
    (folder / "data.yaml").write_text(description)
    return folder


def _voc(filename: str = "", name: str = "car") -> str:
    return (
        f"<annotation><filename>{filename}</filename><object><name>{name}</name><bndbox>"
        "<xmin>5</xmin><ymin>6</ymin><xmax>24</xmax><ymax>15</ymax></bndbox></object></annotation>"
    )


def test_images_that_share_an_id_are_left_out_with_their_boxes(
    workspace: Workspace, tmp_path: Path
) -> None:
    for number, name in enumerate(("a/1.png", "b/1.png", "c.png")):
        write_picture(tmp_path / name, number)
    images = [coco_image(1, "a/1.png"), coco_image(1, "b/1.png"), coco_image(2, "c.png")]
    # Also where one of the two is not there, nobody knows whose boxes they are.
    images += [coco_image(3, "away.png"), {**coco_image(3, "b/1.png"), "id": "3"}]
    boxes = [coco_box(1, 1, BOX), coco_box(2, 2, BOX), coco_box(3, 3, BOX)]
    result = _ingest(workspace, write_coco(tmp_path, images, boxes))
    assert _labels(result) == [("c.png", "car", CORNERS)]
    text = _text(result)
    assert "a/1.png: image id 1 is used for a/1.png and b/1.png" in text
    assert "annotation 1 (car)" in text
    assert "annotation 3 (car)" in text


def test_an_image_of_the_same_name_in_another_folder_is_another_image(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_picture(tmp_path / "night" / "1.png", 1)
    write_picture(tmp_path / "night" / "2.png", 2)
    images = [coco_image(1, "day/1.png"), coco_image(2, "night/2.png")]
    boxes = [coco_box(1, 1, BOX), coco_box(2, 2, BOX)]
    result = _ingest(workspace, write_coco(tmp_path, images, boxes))
    assert _labels(result) == [("night/2.png", "car", CORNERS)]
    (entry,) = result.quarantine
    assert (entry.file, entry.reason) == ("day/1.png", "missing")
    assert "in another folder: night/1.png; 1 box left out with it: annotation 1" in entry.detail


def test_the_one_image_of_a_name_is_found_wherever_the_exporter_had_it(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_picture(tmp_path / "images" / "x_0001.png", 1)
    write_picture(tmp_path / "images" / "x_0002.png", 2)
    images = [coco_image(0, "..\\..\\media\\4\\x_0001.png"), coco_image(1, "C:\\x_0002.png")]
    result = _ingest(workspace, write_coco(tmp_path, images, [coco_box(1, 0, BOX)]))
    assert _labels(result) == [("images/x_0001.png", "car", CORNERS)]
    assert [drive.id for drive in result.dataset.drives] == ["x"]


@pytest.mark.parametrize("format_", ["auto", "coco"])
def test_the_parts_of_an_export_are_read_together(
    workspace: Workspace, tmp_path: Path, format_: str
) -> None:
    for number, part in enumerate(("train", "valid", "test")):
        write_picture(tmp_path / part / f"{part}.png", number)
        write_coco(tmp_path / part, [coco_image(0, f"{part}.png")], [coco_box(0, 0, BOX)])
        (tmp_path / part / "labels.coco.json").rename(tmp_path / part / "_annotations.coco.json")
    result = _ingest(workspace, tmp_path, format=format_)
    assert [name for name, *_ in _labels(result)] == [
        "test/test.png",
        "train/train.png",
        "valid/valid.png",
    ]
    assert not result.quarantine


def test_images_lie_beside_the_folder_of_annotations(workspace: Workspace, tmp_path: Path) -> None:
    for number, part in enumerate(("train2017", "val2017")):
        write_picture(tmp_path / part / f"00000000000{number}.png", number)
        rows = [coco_image(number, f"00000000000{number}.png")], [coco_box(0, number, BOX)]
        folder = write_coco(tmp_path / "annotations", *rows)
        (folder / "labels.coco.json").rename(folder / f"instances_{part}.json")
    one = _ingest(workspace, tmp_path / "annotations" / "instances_val2017.json")
    assert [name for name, *_ in _labels(one)] == ["val2017/000000000001.png"]
    assert len(_labels(_ingest(workspace, tmp_path))) == 2


def test_odd_values_of_coco_files(workspace: Workspace, tmp_path: Path) -> None:
    images, boxes = [], []
    for number, size in enumerate((-1, 0, None, "", str(WIDTH), float(WIDTH))):
        write_picture(tmp_path / f"{number}.png", number)
        height = {str(WIDTH): str(HEIGHT), float(WIDTH): float(HEIGHT)}.get(size, size)  # type: ignore[arg-type]
        images.append({**coco_image(number, f"{number}.png"), "width": size, "height": height})
    polygon = [4, 5, 24, 5, 24, 15]
    boxes = [
        {**coco_box(0, 0, BOX, iscrowd="0"), "image_id": "0"},
        {**coco_box(1, 1, BOX, iscrowd="false"), "image_id": 1.0},
        coco_box(2, 2, [], segmentation=[polygon]),
        coco_box(3, 3, [], segmentation=polygon),
        coco_box(4, 4, BOX, iscrowd="true"),
        coco_box(5, 5, [], segmentation={"counts": [0, 9], "size": [3, 3]}),
        coco_box(6, 5, BOX, iscrowd="maybe"),
        coco_box(7, 5, BOX),
    ]
    result = _ingest(workspace, write_coco(tmp_path, images, boxes))
    assert _labels(result) == [(f"{number}.png", "car", CORNERS) for number in range(6)]
    crowds = [result.sources[label.frame] for label in result.dataset.labels if label.ignore]
    assert crowds == ["4.png"]
    text = _text(result)
    assert "annotation 5: it has a segmentation mask and no bbox" in text
    assert "annotation 6: iscrowd 'maybe' is neither true nor false" in text


def test_entries_about_one_image_are_joined_or_left_out(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_picture(tmp_path / "1.png", 1)
    write_picture(tmp_path / "2.png", 2)
    images = [coco_image(1, "1.png"), coco_image(2, "1.png"), coco_image(3, "2.png")]
    images.append({**coco_image(4, "2.png"), "width": 7})
    boxes = [coco_box(n, n, [n, 5, 20, 10]) for n in range(1, 5)]
    result = _ingest(workspace, write_coco(tmp_path, images, boxes))
    assert [name for name, *_ in _labels(result)] == ["1.png", "1.png"]
    assert "annotation 3 (car)" in _text(result)
    assert "annotation 4 (car)" in _text(result)


def test_windows_names_give_the_same_drive(workspace: Workspace, tmp_path: Path) -> None:
    for number in (1, 2):
        write_picture(tmp_path / "images" / f"north_000{number}.png", number)
    images = [coco_image(1, "images\\north_0001.png"), coco_image(2, "images/north_0002.png")]
    result = _ingest(workspace, write_coco(tmp_path, images, []))
    assert [drive.id for drive in result.dataset.drives] == ["north"]


def test_boxes_of_duplicate_images_are_named(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        write_picture(tmp_path / name, 7)
    images = [coco_image(1, "1.png"), coco_image(2, "2.png")]
    result = _ingest(workspace, write_coco(tmp_path, images, [coco_box(9, 2, BOX)]))
    assert "the same bytes as 1.png; 1 box left out with it: annotation 9" in _text(result)


def test_class_numbers_may_have_a_decimal_point(workspace: Workspace, tmp_path: Path) -> None:
    lines = {"a": "0.0 .5 .5 .2 .2\n1.000e+00 .5 .5 .4 .4", "b": "1.5 .5 .5 .2 .2", "c": ""}
    result = _ingest(workspace, _yolo(tmp_path, lines))
    assert [cls for _, cls, _ in _labels(result)] == ["car", "pedestrian"]
    assert "labels/b.txt: line 1: class '1.5' is not a whole number" in _text(result)
    # A frame whose lines all fail is not an empty one; a frame without lines is.
    assert sorted(result.sources.values()) == ["images/a.png", "images/c.png"]


@pytest.mark.parametrize(("shape", "tail"), [("[2, 2]", ".1 .1 .9 .9"), ("[2, 3]", "0 0 2 .9 1 2")])
def test_key_points_are_no_polygon(
    workspace: Workspace, tmp_path: Path, shape: str, tail: str
) -> None:
    description = f"names: [car]\nkpt_shape: {shape}"
    lines = {"a": f"0 .5 .5 .25 .5 {tail}\n0 .5 .5 .5 .5\n0 1 2 3 4 5 6 7"}
    result = _ingest(workspace, _yolo(tmp_path, lines, description))
    assert [box for *_, box in _labels(result)] == [(16, 12, 48, 36), (24, 12, 40, 36)]
    assert "8 numbers instead of the" in _text(result)


def test_byte_order_marks_and_encodings(workspace: Workspace, tmp_path: Path) -> None:
    folder = _yolo(tmp_path / "yolo", {"a": "\ufeff0 .5 .5 .2 .2\r\n1\t.5\t.5\t.4\t.4\r\n"})
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_bytes("\ufeffcar\nperson".encode())
    assert len(_labels(_ingest(workspace, folder))) == 2
    voc = tmp_path / "voc"
    for number, encoding in enumerate(("unicode", "gb2312", "utf-16", "utf-8-sig")):
        write_picture(voc / f"{number}.png", number)
        text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n{_voc()}'
        written = "utf-8" if encoding == "unicode" else encoding
        (voc / f"{number}.xml").write_bytes(text.encode(written))
    result = _ingest(workspace, voc)
    assert [name for name, *_ in _labels(result)] == ["1.png", "2.png", "3.png"]
    assert "0.xml: unknown text encoding 'unicode'" in _text(result)


def test_an_unreadable_description_is_told_with_line_and_reason(tmp_path: Path) -> None:
    folder = _yolo(tmp_path, {"a": ""}, 'path: "D:\\data"\nnames: [car]')
    with pytest.raises(DataError, match=r"line 1, column 1\d: found unknown escape character"):
        readers.read_source(folder)


def test_labels_that_fit_two_images_are_left_out(workspace: Workspace, tmp_path: Path) -> None:
    folder = _yolo(tmp_path, {"a": "0 .5 .5 .2 .2", "b": "0 .5 .5 .2 .2"})
    write_picture(folder / "images" / "a.jpg", 9)
    (folder / "labels" / "b.txt").rename(folder / "labels" / "b.png.txt")
    result = _ingest(workspace, folder)
    assert [name for name, *_ in _labels(result)] == ["images/b.png"]
    assert "images/a.jpg and images/a.png" in _text(result)
    assert "line 1 (car)" in _text(result)


def test_hidden_and_system_files_are_left_out(workspace: Workspace, tmp_path: Path) -> None:
    folder = _yolo(tmp_path, {"a": "0 .5 .5 .2 .2"})
    for name in ("._data.yaml", "__MACOSX/._data.yaml", "labels/._a.txt", "images/._a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "__MACOSX" / "b.png").write_bytes(b"no image")
    result = _ingest(workspace, folder)
    assert len(_labels(result)) == 1
    assert not result.quarantine


def test_contradictory_voc_names_leave_both_images_out(
    workspace: Workspace, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        write_picture(tmp_path / "JPEGImages" / f"{number}.png", number)
    (tmp_path / "Annotations").mkdir()
    for number, filename in ((1, "2.png"), (2, "1.png"), (3, "3_renamed.jpg")):
        (tmp_path / "Annotations" / f"{number}.xml").write_text(_voc(filename))
    result = _ingest(workspace, tmp_path)
    assert [name for name, *_ in _labels(result)] == ["JPEGImages/3.png"]
    assert "but <filename> says 2.png: both images are left out" in _text(result)
    assert "object 1 (car)" in _text(result)


def test_kitti_tracking_is_read(workspace: Workspace, tmp_path: Path) -> None:
    base = tmp_path / "training"
    for number in (0, 1):
        write_picture(base / "image_02" / "0003" / f"00000{number}.png", number)
    (base / "label_02").mkdir()
    tail = "1 1 1 1 1 1 1"
    (base / "label_02" / "0003.txt").write_text(
        f"0 -1 DontCare -1 -1 -10 4 5 24 15 {tail}\n1 7 Car 1 0 0 4 5 24 15 {tail}\n"
        f"1 8 Car 0 0 0 5 5 24 15 {tail} 0.9\n5 9 Car 0 0 0 5 5 24 15 {tail}\n"
    )
    result = _ingest(workspace, tmp_path)
    assert [(cls, box) for _, cls, box in _labels(result)] == [("*", CORNERS), ("car", CORNERS)]
    assert [label.track for label in result.dataset.labels] == [None, "7"]
    assert [frame.timestamp_us for frame in result.dataset.frames] == [0, 100_000]
    assert "its score, not a label" in _text(result)
    assert "no image of frame 5" in _text(result)


def test_classes_of_several_words(workspace: Workspace, tmp_path: Path) -> None:
    write_picture(tmp_path / "image_2" / "000000.png", 1)
    (tmp_path / "label_2").mkdir()
    row = "traffic light 0 0 0 4 5 24 15 1 1 1 1 1 1 1"
    (tmp_path / "label_2" / "000000.txt").write_text(row)
    assert _labels(_ingest(workspace, tmp_path)) == [
        ("image_2/000000.png", "traffic_light", CORNERS)
    ]


def test_no_image_file_stops_an_ingest(workspace: Workspace, tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 1)
    one, two = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    one.save(tmp_path / "2.jpg", "MPO", save_all=True, append_images=[two])
    one.save(tmp_path / "3.jfif", "JPEG", quality=50)
    for name in ("4.gif", "5.heic", "6.mp4", "7.zip"):
        (tmp_path / name).write_bytes(b"some")
    (tmp_path / "broken.png").symlink_to("away.png")
    result = _ingest(workspace, tmp_path)
    assert sorted(result.sources.values()) == ["1.png", "2.jpg", "3.jfif"]
    assert {frame.suffix for frame in result.dataset.frames} == {".png", ".jpg"}
    left_out = {entry.file: entry.reason for entry in result.quarantine}
    assert left_out == {
        **dict.fromkeys(("4.gif", "5.heic", "6.mp4", "7.zip"), "unreadable"),
        "broken.png": "missing",
    }


def test_linked_folders_are_walked_once(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "set"
    write_picture(source / "drive_a" / "0001.png", 1)
    write_picture(tmp_path / "disk2" / "drive_b" / "0001.png", 2)
    write_picture(tmp_path / "disk2" / "drive_c" / "0001.png", 3)
    (source / "drive_b").symlink_to("../disk2/drive_b")
    (source / "drive_a" / "loop").symlink_to("..")
    (source / "drive_c").write_text("../disk2/drive_c")  # as Git without links writes it
    result = _ingest(workspace, source)
    assert [drive.id for drive in result.dataset.drives] == ["drive_a", "drive_b"]
    assert "drive_c: a link to ../disk2/drive_c that was saved as text" in _text(result)


def test_an_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "export.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"an archive, not a folder.*Unpack it first"):
        readers.read_source(tmp_path / "export.zip")


@pytest.mark.parametrize(
    ("name", "drive", "timestamp_us"),
    [
        ("cam/315966253549927218.jpg", "cam", 315_966_253_549_927),
        ("n015__CAM_FRONT__1531883530412470.jpg", "n015__CAM_FRONT", 1_531_883_530_412_470),
        ("run/1670577347002.png", "run", 1_670_577_347_002_000),
        ("run/1670577347.png", "run", 1_670_577_347_000_000),
        ("run/1670577347.002843.png", "run", 1_670_577_347_002_843),
        ("run/1670577347-002843123.png", "run", 1_670_577_347_002_843),
        ("front_20230115_123045.jpg", "front", 1_673_785_845_000_000),
        ("2023-01-15T12:30:45.25.jpg", "unknown", 1_673_785_845_250_000),
        ("run/2023-01-15_12-30-45-250.jpg", "run", 1_673_785_845_250_000),
        ("000000000139.jpg", "unknown", None),
        ("20230115_123045_0012.jpg", "20230115_123045", None),
        ("run/20231315_123045.jpg", "run/20231315", None),
        ("b1c66a42-6f7d68ca.jpg", "b1c66a42", None),
    ],
)
def test_times_in_names(name: str, drive: str, timestamp_us: int | None) -> None:
    parts = parse_file_name(name)
    assert (parts.drive, parts.timestamp_us) == (drive, timestamp_us)


def test_times_in_names_order_frames(workspace: Workspace, tmp_path: Path) -> None:
    # The last nine digits of these run backwards.
    times = [1_670_577_000_000_000_000 + step * 500_000_001 for step in range(8)]
    for seed, time in enumerate(times):
        write_picture(tmp_path / "run" / f"{time}.png", seed)
    dataset = _ingest(workspace, tmp_path).dataset
    assert [frame.timestamp_us for frame in dataset.frames] == [time // 1000 for time in times]
    assert [frame.index for frame in dataset.frames] == list(range(8))
    assert [drive.time_source for drive in dataset.drives] == ["time in the file name (ns)"]


@pytest.mark.parametrize(
    ("names", "drives"),
    [
        ([f"run/{1670577347 + n // 2}-{(n % 2) * 500 + 2:03d}.png" for n in range(6)], ["run"]),
        (
            [f"run/20230115_1230{n // 2:02d}_{(n % 2) * 500_000 + 9:06d}.png" for n in range(6)],
            ["run"],
        ),
        # A recording, its start in the name, and frame numbers.
        ([f"run/1670577347_{n:06d}.png" for n in range(6)], ["run/1670577347"]),
        ([f"run/20230115_123000_{n:06d}.png" for n in range(6)], ["run/20230115_123000"]),
    ],
)
def test_fractions_are_told_from_frame_numbers(
    workspace: Workspace, tmp_path: Path, names: list[str], drives: list[str]
) -> None:
    for seed, name in enumerate(names):
        write_picture(tmp_path / name, seed)
    result = _ingest(workspace, tmp_path)
    assert [drive.id for drive in result.dataset.drives] == drives
    assert [result.sources[frame.id] for frame in result.dataset.frames] == names
    assert [frame.index for frame in result.dataset.frames] == list(range(6))


def _scalabel(folder: Path, rows: list[Any]) -> Path:
    for seed, row in enumerate(rows):
        write_picture(folder / "images" / row["name"], seed)
    (folder / "labels.json").write_text(json.dumps(rows))
    return folder


def test_scalabel_is_read_with_conditions_in_its_words(
    workspace: Workspace, tmp_path: Path
) -> None:
    label = {"id": "3", "category": "traffic light", "attributes": {"occluded": True}}
    box = {"x1": 4, "y1": 5, "x2": 24, "y2": 15}
    rows: list[Any] = [
        {"name": "aaaa0000-11110000.jpg", "labels": [{**label, "box2d": box}]},
        {"name": "aaaa0000-22220000.jpg", "labels": []},
        {"name": "bbbb0000-22220000.jpg", "labels": None},
        {"name": "cccc0000-22220000.jpg", "labels": [{**label, "box2d": {"x1": 4}}]},
        {"name": "dddd0000-22220000.jpg"},
    ]
    words = (("rainy", "daytime"), ("overcast", "dawn/dusk"), *[("foggy", "night")] * 3)
    for row, (weather, light) in zip(rows, words, strict=True):
        row["attributes"] = {"weather": weather, "timeofday": light, "scene": "highway"}
    result = _ingest(workspace, _scalabel(tmp_path, rows))
    assert result.format == "scalabel"
    assert _labels(result) == [("images/aaaa0000-11110000.jpg", "traffic_light", CORNERS)]
    assert [drive.id for drive in result.dataset.drives] == ["aaaa0000"]
    assert [tuple(dict(frame.conditions).values())[:2] for frame in result.dataset.frames] in (
        [("day", "rain"), ("dusk", "clear")],
        [("dusk", "clear"), ("day", "rain")],
    )
    left_out = {entry.file: entry.detail for entry in result.quarantine}
    assert "nobody labeled it" in left_out["bbbb0000-22220000.jpg"]
    assert "nobody labeled it" in left_out["dddd0000-22220000.jpg"]
    assert "label 3 in labels.json: its box2d has no" in left_out["cccc0000-22220000.jpg"]


def test_unknown_words_are_reported_and_can_be_mapped(workspace: Workspace, tmp_path: Path) -> None:
    rows = [
        {"name": "a_0001.jpg", "labels": [], "attributes": {"weather": "Sandstorm"}},
        {"name": "a_0002.jpg", "labels": [], "attributes": {"weather": "undefined"}},
    ]
    folder = _scalabel(tmp_path, rows)
    (entry,) = _ingest(workspace, folder).quarantine
    assert "weather 'Sandstorm' (1 image) is not a known word" in entry.detail
    mapped = _ingest(workspace, folder, conditions={"sandstorm": "fog"})
    assert not mapped.quarantine
    assert [frame.conditions.weather.value for frame in mapped.dataset.frames] == ["fog", "unknown"]


def test_videos_of_scalabel_are_drives_with_times(workspace: Workspace, tmp_path: Path) -> None:
    box = {"x1": 4, "y1": 5, "x2": 24, "y2": 15}
    rows = [
        {
            "name": f"v1-000000{number}.jpg",
            "videoName": "v1",
            "frameIndex": number,
            "timestamp": 200 * number,
            "labels": [{"id": 5, "category": "car", "box2d": box}],
        }
        for number in (0, 1)
    ]
    dataset = _ingest(workspace, _scalabel(tmp_path, rows)).dataset
    assert [(f.drive, f.index, f.timestamp_us) for f in dataset.frames] == [
        ("v1", 0, 0),
        ("v1", 1, 200_000),
    ]
    assert [label.track for label in dataset.labels] == ["5", "5"]


def test_exports_of_fiftyone_are_read(workspace: Workspace, tmp_path: Path) -> None:
    for seed, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        write_picture(tmp_path / "data" / name, seed)
    box = {"label": "person", "bounding_box": [0.25, 0.25, 0.5, 0.5]}
    samples: list[Any] = [
        {"filepath": "data/a.jpg", "ground_truth": {"_cls": "Detections", "detections": [box]}},
        {"filepath": "data/b.jpg", "ground_truth": {"_cls": "Detections", "detections": []}},
        {"filepath": "data/c.jpg", "ground_truth": None},
    ]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    result = _ingest(workspace, tmp_path)
    assert result.format == "fiftyone"
    assert _labels(result) == [("data/a.jpg", "pedestrian", (16, 12, 48, 36))]
    assert sorted(result.sources.values()) == ["data/a.jpg", "data/b.jpg"]
    (tmp_path / "samples.json").unlink()
    numbered = {"a": [{"label": 1, "bounding_box": [0.25, 0.25, 0.5, 0.5]}], "b": [], "c": None}
    (tmp_path / "labels.json").write_text(
        json.dumps({"classes": ["car", "person"], "labels": numbered})
    )
    assert _labels(_ingest(workspace, tmp_path)) == _labels(result)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("via.json", '{"a.png1": {"regions": []}}'),
        ("a.json", '{"shapes": [], "imagePath": "a.png"}'),
        ("cvat.xml", "<annotations><version>1.1</version></annotations>"),
        ("labels.csv", "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,car"),
        ("a.txt", "0 0.5 0.5 0.2 0.2"),
    ],
)
def test_annotations_of_an_unknown_format_are_not_lost_in_silence(
    tmp_path: Path, name: str, text: str
) -> None:
    write_picture(tmp_path / "a.png", 1)
    (tmp_path / "notes.txt").write_text("Taken in Bern on a sunny day with two cameras.")
    assert readers.read_source(tmp_path).format == "images"
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="annotations in an unknown format") as error:
        readers.read_source(tmp_path)
    assert name in str(error.value)
    assert readers.read_source(tmp_path, "images").format == "images"


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": [{"category": "car", "poly2d": 7}]},
        {"labels": [{"category": "car", "poly2d": [{"vertices": [1, [2]]}]}]},
        {"labels": [{"category": "car", "box2d": {"x1": None, "y1": 1, "x2": 2, "y2": 3}}]},
        {"labels": [5, None, {}]},
        {"labels": 5},
        {"attributes": [1]},
        {"frameIndex": 10**30},
    ],
)
def test_garbage_in_one_entry_does_not_stop_the_others(
    workspace: Workspace, tmp_path: Path, changed: dict[str, Any]
) -> None:
    rows = [{"name": f"a_{n:04d}.jpg", "labels": [], "attributes": {}} for n in range(2)]
    rows[1] |= changed
    result = _ingest(workspace, _scalabel(tmp_path, rows))
    assert list(result.sources.values()) == ["images/a_0000.jpg"]
    assert result.quarantine


def test_garbage_in_one_image_of_a_coco_file(workspace: Workspace, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 1)
    images = [coco_image(1, "a.png"), {"file_name": "b.png"}, {"file_name": "c.png"}]
    images.append({**coco_image(9, "a.png"), "index": 10**30})
    result = _ingest(workspace, write_coco(tmp_path, images, []))
    assert list(result.sources.values()) == ["a.png"]
    assert len(result.quarantine) == 3


def test_names_are_found_in_other_spellings(workspace: Workspace, tmp_path: Path) -> None:
    # macOS decomposes accents, Windows takes any case, some exporters write URLs.
    decomposed = unicodedata.normalize("NFD", "é/straße_1.png")
    for number, name in enumerate((decomposed, "images/IMG_2.PNG", "my car_3.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(number, "PNG"))
    composed = unicodedata.normalize("NFC", decomposed)
    images = [
        coco_image(1, composed),
        coco_image(2, "images/img_2.png"),
        coco_image(3, "my%20car_3.png"),
    ]
    result = _ingest(
        workspace, write_coco(tmp_path, images, [coco_box(n, n, BOX) for n in (1, 2, 3)])
    )
    assert [name for name, *_ in _labels(result)] == sorted(
        (decomposed, "images/IMG_2.PNG", "my car_3.png")
    )


def test_names_that_differ_in_case_are_not_exchanged(workspace: Workspace, tmp_path: Path) -> None:
    for number, name in enumerate(("a/F_1.png", "a/f_1.png")):
        write_picture(tmp_path / name, number)
    images = [coco_image(1, "F_1.png"), coco_image(2, "f_1.png")]
    boxes = [coco_box(1, 1, BOX), coco_box(2, 2, [30, 5, 20, 10])]
    result = _ingest(workspace, write_coco(tmp_path, images, boxes))
    assert _labels(result) == [
        ("a/F_1.png", "car", CORNERS),
        ("a/f_1.png", "car", (30, 5, 50, 15)),
    ]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("Images/a_1.png", "Labels/a_1.txt"),
        ("images/a_1.png", "labels/A_1.TXT"),
        ("JPEGImages/a_1.png", "labels/a_1.txt"),
        ("a_1.png", "labels/a_1.txt"),
        ("train/images/a_1.png", "train/labels/a_1.png.txt"),
    ],
)
def test_yolo_labels_are_paired_in_every_layout(
    workspace: Workspace, tmp_path: Path, images: str, labels: str
) -> None:
    write_picture(tmp_path / images, 1)
    (tmp_path / labels).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / labels).write_text("0 .5 .5 .25 .25\n")
    (tmp_path / "data.yaml").write_text("names: [car]")
    result = _ingest(workspace, tmp_path)
    assert _labels(result) == [(images, "car", (24, 18, 40, 30))]
    assert not result.quarantine


def test_class_names_beside_yolo_labels_are_read(workspace: Workspace, tmp_path: Path) -> None:
    _yolo(tmp_path, {"a_1": "1 .5 .5 .25 .25\n"})
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "labels" / "classes.txt").write_text("car\nperson\n")
    assert [cls for _, cls, _ in _labels(_ingest(workspace, tmp_path))] == ["pedestrian"]


def test_contradictory_yolo_class_names_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    _yolo(tmp_path, {"a_1": "0 .5 .5 .25 .25\n"})
    (tmp_path / "coco.yaml").write_text("names: [person, car]")
    assert [cls for _, cls, _ in _labels(_ingest(workspace, tmp_path))] == ["car"]  # data.yaml's
    (tmp_path / "data.yaml").rename(tmp_path / "own.yaml")
    with pytest.raises(DataError, match=r"different class names: coco\.yaml, own\.yaml"):
        _ingest(workspace, tmp_path)


def test_a_voc_object_with_two_boxes_is_named(workspace: Workspace, tmp_path: Path) -> None:
    second = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    write_picture(tmp_path / "1.png", 1)
    write_picture(tmp_path / "2.png", 2)
    (tmp_path / "1.xml").write_text(_voc().replace("</object>", second))
    space = '<annotation xmlns="http://example.org/voc">'
    (tmp_path / "2.xml").write_text(_voc().replace("<annotation>", space, 1))
    result = _ingest(workspace, tmp_path, format="voc")
    assert [name for name, *_ in _labels(result)] == ["2.png"]
    assert "1.xml: object 1: it has 2 bndbox elements" in _text(result)


def test_coco_boxes_in_fractions_are_named(workspace: Workspace, tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 1)
    boxes = [coco_box(1, 1, BOX), coco_box(2, 1, [0.25, 0.5, 0.25, 0.25])]
    result = _ingest(workspace, write_coco(tmp_path, [coco_image(1, "1.png")], boxes))
    assert "in fractions of the image" in _text(result)


def test_images_that_would_lose_something_are_named(workspace: Workspace, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    first.save(tmp_path / "pages_1.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "moves_2.png", save_all=True, append_images=[second])
    Image.fromarray(pixels[..., 0].astype(np.float32) / 255).save(tmp_path / "float_3.tif")
    (tmp_path / "no_ending").write_bytes(picture(4, "PNG"))
    result = _ingest(workspace, tmp_path)
    assert sorted(result.sources.values()) == ["moves_2.png", "pages_1.tif"]
    text = _text(result)
    assert "pages_1.tif: it holds 2 images" in text
    assert "moves_2.png: it holds 2 images" in text
    assert "float_3.tif: its values need more than 16 bits" in text
    assert "no_ending: a PNG image without an ending" in text


def test_auto_refuses_labels_in_json_lines(workspace: Workspace, tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 1)
    (tmp_path / "labels.jsonl").write_text('{"image": "1.png", "boxes": [[1, 2, 30, 40]]}\n')
    with pytest.raises(DataError, match=r"unknown format beside the images: labels\.jsonl"):
        _ingest(workspace, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "aachen/aachen_000000_{:06d}_leftImg8bit.png",
        "170908_0615{:02d}408_Camera_5.png",
        "{}_left.png",
        "shot ({}).png",
        "frame_{}.5s.png",
    ],
)
def test_names_that_end_alike_are_put_in_natural_order(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    names = [name.format(number) for number in (1, 2, 10, 20)]
    for number, each in enumerate(names):
        write_picture(tmp_path / each, number)
    result = _ingest(workspace, tmp_path, format="images")
    order = sorted(result.dataset.frames, key=lambda frame: frame.index)
    assert [result.sources[frame.id] for frame in order] == names
    assert [frame.index for frame in order] == [0, 1, 2, 3]


def test_an_index_that_the_source_gives_stays(workspace: Workspace, tmp_path: Path) -> None:
    images = []
    for number, name in enumerate(("a.png", "b.png")):
        write_picture(tmp_path / name, number)
        images.append(coco_image(number, name, drive="d", index=7))
    result = _ingest(workspace, write_coco(tmp_path, images, []))
    assert [frame.index for frame in result.dataset.frames] == [7, 7]


def test_what_lies_beside_the_annotations_is_said(workspace: Workspace, tmp_path: Path) -> None:
    for number, name in enumerate(("1.png", "2.png", "elsewhere/3.png")):
        write_picture(tmp_path / name, number)
    (tmp_path / "1.xml").write_text(_voc())
    source = write_coco(tmp_path, [coco_image(1, "1.png")], [coco_box(1, 1, BOX)])
    result = _ingest(workspace, source)
    assert result.notes == (
        "1 image without an entry in the annotations left out, such as 2.png",
        "voc annotations beside it were not read: --format voc does",
    )


@pytest.mark.parametrize("kept", [300, 20])
def test_auto_refuses_a_damaged_annotation_file(
    workspace: Workspace, tmp_path: Path, kept: int
) -> None:
    write_picture(tmp_path / "1.png", 1)
    source = write_coco(tmp_path, [coco_image(1, "1.png")], [coco_box(1, 1, BOX)])
    path = source / "labels.coco.json"
    path.write_text(path.read_text().replace('"images"', '"annotations"')[:kept])
    with pytest.raises(DataError, match=r"beside the images: labels\.coco\.json"):
        _ingest(workspace, source)


def test_two_fields_of_boxes_without_a_ground_truth(workspace: Workspace, tmp_path: Path) -> None:
    write_picture(tmp_path / "data" / "1.png", 1)
    box = {"label": "car", "bounding_box": [0.25, 0.25, 0.5, 0.5]}
    boxes = {"_cls": "Detections", "detections": [box]}
    sample = {"filepath": "data/1.png", "mine": boxes, "yours": boxes}
    (tmp_path / "samples.json").write_text(json.dumps({"samples": [sample]}))
    with pytest.raises(DataError, match="ambiguous ground truth field: mine and yours"):
        _ingest(workspace, tmp_path)
    sample["ground_truth"] = {"_cls": "Detections", "detections": []}
    (tmp_path / "samples.json").write_text(json.dumps({"samples": [sample]}))
    assert _labels(_ingest(workspace, tmp_path)) == []


def _via(folder: Path, regions: Any, **more: Any) -> Path:
    write_picture(folder / "a_0001.png", 1)
    write_picture(folder / "b_0002.png", 2)
    images = {
        "a_0001.png900": {"filename": "a_0001.png", "size": 900, "regions": regions, **more},
        "b_0002.png900": {"filename": "b_0002.png", "size": 900, "regions": [], **more},
    }
    (folder / "via.json").write_text(json.dumps(images))
    return folder


def _region(shape: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


RECT = {"name": "rect", "x": 4, "y": 5, "width": 20, "height": 10}


def test_annotations_of_via_are_read(workspace: Workspace, tmp_path: Path) -> None:
    corners = {"all_points_x": [4, 24, 9], "all_points_y": [5, 9, 15]}
    regions = [
        _region(RECT, type="car"),
        _region({"name": "polygon", **corners}, type="person", colour="red"),
        _region({"name": "circle", "cx": 30, "cy": 20, "r": 4}, object="truck"),
        _region({"name": "point", "cx": 30, "cy": 20}, type="car"),
        _region(RECT, colour="red", size="big"),
        _region(RECT, type={"car": True, "bus": True}),
    ]
    result = _ingest(workspace, _via(tmp_path, regions))
    assert result.format == "via"
    assert _labels(result) == [
        ("a_0001.png", "car", CORNERS),
        ("a_0001.png", "pedestrian", CORNERS),
        ("a_0001.png", "truck", (26, 16, 34, 24)),
    ]
    for words in (
        "region 4: a shape 'point' has no area",
        "region 5: ambiguous class attribute: colour, size",
        "region 6: attribute 'type' has no single value",
    ):
        assert words in _text(result)
    assert len(result.dataset.frames) == 2


def test_projects_and_the_first_version_of_via_are_read(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = _via(tmp_path, {"0": _region(RECT, name="car")})  # regions by number
    assert len(_labels(_ingest(workspace, source))) == 1
    images = json.loads((source / "via.json").read_text())
    (source / "via.json").write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": images}))
    assert len(_labels(_ingest(workspace, source))) == 1
    assert len(_labels(_ingest(workspace, source / "via.json"))) == 1


def test_fiftyones_export_of_kitti_is_read(workspace: Workspace, tmp_path: Path) -> None:
    line = "car 0 0 0.0 4 5 24 15 0 0 0 0 0 0 0"
    for number, text in enumerate((line, f"{line}\ncar 0 0 0.0 30 5 44 15 0 0 0 0 0 0 0 0.9")):
        write_picture(tmp_path / "data" / f"drive_{number:04d}.png", number)
        labels = tmp_path / "labels" / f"drive_{number:04d}.txt"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text(text)
    result = _ingest(workspace, tmp_path)
    assert result.format == "kitti"
    assert [label[1:] for label in _labels(result)] == [("car", CORNERS)] * 2
    assert "its score, not a label" in _text(result)
    assert [(frame.drive, frame.index) for frame in result.dataset.frames] == [
        ("drive", 0),
        ("drive", 1),
    ]


def test_stills_of_a_ride_have_different_numbers(workspace: Workspace, tmp_path: Path) -> None:
    names = ["b1f4491b-0c2a9d3e.jpg", "b1f4491b-9cf981b1.jpg", "0070bc56-8d8cfd82.jpg"]
    for number, name in enumerate(names):
        write_picture(tmp_path / name, number)
    dataset = _ingest(workspace, tmp_path).dataset
    places = [(frame.drive, frame.index) for frame in dataset.frames]
    assert places == [("0070bc56", 0), ("b1f4491b", 0), ("b1f4491b", 1)]
    assert {frame.timestamp_us for frame in dataset.frames} == {None}  # numbers are not times


@pytest.mark.parametrize("kind", ["voc", "yolo", "kitti"])
def test_images_without_an_annotation_file_are_said(
    workspace: Workspace, tmp_path: Path, kind: str
) -> None:
    folder = {"voc": ".", "yolo": "images", "kitti": "training/image_2"}[kind]
    for number in (1, 2):
        write_picture(tmp_path / folder / f"00000{number}.png", number)
    if kind == "voc":
        (tmp_path / "000001.xml").write_text(_voc())
    elif kind == "yolo":
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "000001.txt").write_text("0 .5 .5 .25 .25")
        (tmp_path / "data.yaml").write_text("names: [car]")
    else:
        (tmp_path / "training" / "label_2").mkdir()
        line = "Car 0 0 0 4 5 24 15 1 1 1 1 1 9 0"
        (tmp_path / "training" / "label_2" / "000001.txt").write_text(line)
    result = _ingest(workspace, tmp_path)
    name = f"{folder}/000002.png".removeprefix("./")
    assert result.notes == (f"1 image without an annotation file, taken for empty, such as {name}",)
