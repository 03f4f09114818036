from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.sources import HEIGHT, WIDTH, coco_box, coco_image, coco_source, write_picture
from workbench.core.errors import DataError, ParameterError
from workbench.data import readers
from workbench.data.names import parse_file_name
from workbench.data.source import Source


def _problems(source: Source) -> dict[str, str]:
    return {entry.file: entry.reason for entry in source.problems}


@pytest.mark.parametrize(
    ("name", "drive", "index", "counter"),
    [
        ("Seq05VD_f04530.jpg", "Seq05VD", 4530, 4530),
        ("0001TP_006690.jpg", "0001TP", 6690, 6690),
        ("images/DRIVE_0007.jpg", "DRIVE", 7, 7),
        ("night/frame0003.png", "night", 3, 3),
        ("training/image_2/000123.png", "unknown", 123, 123),
        ("9.jpeg", "unknown", 9, None),
        ("img_5.jpg", "unknown", 5, None),
        ("street.png", "unknown", 0, None),
    ],
)
def test_file_names_give_drive_and_frame_number(
    name: str, drive: str, index: int, counter: int | None
) -> None:
    parts = parse_file_name(name)
    assert (parts.drive, parts.index, parts.counter) == (drive, index, counter)


def test_voc_pixels_count_from_one_and_include_both_corners(tmp_path: Path) -> None:
    write_picture(tmp_path / "JPEGImages" / "a.jpg", 1)
    annotations = tmp_path / "Annotations"
    annotations.mkdir()
    (annotations / "a.xml").write_text(
        f"""<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>
        <object><name>car</name><truncated>1</truncated><difficult>0</difficult>
        <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{WIDTH}</xmax><ymax>{HEIGHT}</ymax></bndbox>
        </object>
        <object><name>dog</name><truncated>0</truncated><difficult>1</difficult>
        <bndbox><xmin>10</xmin><ymin>10</ymin><xmax>10</xmax><ymax>10</ymax></bndbox></object>
        <object><name>bus</name></object></annotation>"""
    )
    (annotations / "away.xml").write_text("<annotation></annotation>")
    found = readers.read_source(tmp_path)
    assert found.format == "voc"
    (frame,) = found.frames
    whole, pixel = frame.boxes
    assert whole.corners == (0, 0, WIDTH, HEIGHT)
    assert pixel.corners == (9, 9, 10, 10), "one pixel is one pixel wide"
    assert (whole.ignore, pixel.ignore) == (False, True)
    assert (whole.truncated, pixel.truncated) == (None, 0.0)
    assert frame.size == (WIDTH, HEIGHT)
    assert _problems(found) == {
        "Annotations/a.xml": "mislabelled",
        "Annotations/away.xml": "missing",
    }


def test_voc_images_with_invalid_annotations_are_left_out(tmp_path: Path) -> None:
    for name in ("good", "torn", "bomb"):
        write_picture(tmp_path / f"{name}.jpg", len(name) + ord(name[0]))
    (tmp_path / "good.xml").write_text("<annotation></annotation>")
    (tmp_path / "torn.xml").write_text("<annotation><object>")
    (tmp_path / "bomb.xml").write_text(
        '<!DOCTYPE a [<!ENTITY x "xxxx">]><annotation>&x;</annotation>'
    )
    found = readers.read_source(tmp_path, "voc")
    assert [frame.name for frame in found.frames] == ["good.jpg"]
    assert _problems(found) == {"torn.xml": "mislabelled", "bomb.xml": "mislabelled"}


def test_yolo_boxes_polygons_and_invalid_lines(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "train" / "a.jpg", 1)
    write_picture(tmp_path / "images" / "train" / "b.jpg", 2)
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("names: {0: car, 2: person}\n")
    (labels / "a.txt").write_text(
        "0 0.5 0.5 0.2 0.4\n2 0.1 0.1 0.3 0.1 0.3 0.6\n\n"
        "0 0.5 0.5 0.2 0.4 0.9\n0 0.5 x 0.2 0.4\n1 0.5 0.5 0.1 0.1\n"
    )
    (labels / "away.txt").write_text("")
    found = readers.read_source(tmp_path)
    assert found.format == "yolo"
    boxed, empty = found.frames
    assert empty.boxes == ()
    box, polygon, unnamed = boxed.boxes
    assert box.corners == pytest.approx((0.4, 0.3, 0.6, 0.7))
    assert polygon.corners == (0.1, 0.1, 0.3, 0.6)
    assert (box.name, polygon.name, unnamed.name) == ("car", "person", "class 1")
    assert [(entry.file, entry.detail.split(":")[0]) for entry in found.problems] == [
        ("labels/train/a.txt", "line 4"),
        ("labels/train/a.txt", "line 5"),
        ("labels/train/away.txt", "its image is missing"),
    ]


def test_kitti_levels_ignore_regions_and_calibration(tmp_path: Path) -> None:
    base = tmp_path / "training"
    write_picture(base / "image_2" / "000000.png", 1)
    write_picture(base / "image_2" / "000001.png", 2)
    for folder in ("label_2", "calib"):
        (base / folder).mkdir()
    tail = "1 1 1 1 1 1 1"
    (base / "label_2" / "000000.txt").write_text(
        f"Pedestrian 0.25 1 -0.2 1.5 2.5 10.5 20.5 {tail}\n"
        f"DontCare -1 -1 -10 20 20 30 30 {tail}\n"
        f"Car 0 0 0 1 2 3 4 {tail} 0.9\nCar 1 2\n"
    )
    (base / "calib" / "000000.txt").write_text("P2: 700 0 320 4 0 701 240 0 0 0 1 0\n")
    (base / "calib" / "000001.txt").write_text("P2: seven\n")
    found = readers.read_source(tmp_path)
    assert found.format == "kitti"
    first, second = found.frames
    person, region = first.boxes
    assert person.corners == (1.5, 2.5, 10.5, 20.5)
    assert (person.occluded, person.truncated) == (0.4, 0.25)
    assert (region.name, region.occluded, region.truncated) == ("DontCare", None, None)
    calibration = found.drives[first.drive].calibration
    assert (calibration.fx, calibration.fy, calibration.cx, calibration.cy) == (700, 701, 320, 240)
    assert second.drive == "unknown"
    assert first.counter is None, "file numbers of a shuffled set are no clock"
    details = [entry.detail for entry in found.problems if "label_2" in entry.file]
    assert len(details) == 2 and "score" in details[0] and "3 columns" in details[1]


def test_coco_fields_of_rendered_drives_are_read(tmp_path: Path) -> None:
    image = coco_image(
        0,
        "x.jpg",
        drive="d",
        index=4,
        timestamp_us=7,
        light="night",
        weather="fog",
        construction=True,
        events=["e"],
    )
    box = coco_box(0, 0, [1, 2, 3, 4], occluded=0.5, truncated=True)
    write_picture(tmp_path / "x.jpg", 1)
    body = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "any.json").write_text(json.dumps(body))
    (frame,) = readers.read_source(tmp_path / "any.json").frames
    assert (frame.drive, frame.index, frame.timestamp_us, frame.events) == ("d", 4, 7, ("e",))
    assert frame.conditions.model_dump(mode="json") == {
        "light": "night",
        "weather": "fog",
        "construction": True,
    }
    assert (frame.boxes[0].occluded, frame.boxes[0].truncated) == (0.5, None)
    assert frame.boxes[0].corners == (1, 2, 4, 6)


def test_several_coco_files_are_an_error(tmp_path: Path) -> None:
    source = coco_source(tmp_path)
    text = (source / "labels.coco.json").read_text()
    (source / "labels.coco.json").rename(source / "a.json")
    (source / "b.json").write_text(text)
    with pytest.raises(DataError, match=r"several COCO files: a\.json, b\.json"):
        readers.read_source(source, "coco")


def test_any_content_of_a_coco_file_is_handled(tmp_path: Path) -> None:
    source = coco_source(tmp_path, frames=1)
    body = json.loads((source / "labels.coco.json").read_text())
    body["images"] += [7, {}, {"id": 5}, {**body["images"][0], "id": 8, "width": "wide"}]
    body["annotations"] += [{"id": 9}, {"id": 10, "image_id": 0, "category_id": 1, "bbox": None}]
    body["annotations"] += [5, {"id": 11, "image_id": [], "category_id": 1, "bbox": [1, 2, 3, 4]}]
    body["categories"] += [3]
    (source / "labels.coco.json").write_text(json.dumps(body))
    found = readers.read_source(source)
    assert [frame.name for frame in found.frames] == ["images/a_0000.jpg"]
    assert len(found.problems) == 8
    assert {entry.reason for entry in found.problems} == {"mislabelled"}


def test_formats_and_sources_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="unknown source format"):
        readers.read_source(tmp_path, "tfrecord")
    with pytest.raises(DataError, match="unknown format"):
        readers.read_source(tmp_path)
    with pytest.raises(DataError, match="no COCO file"):
        readers.read_source(tmp_path, "coco")
    with pytest.raises(DataError, match="no class names"):
        readers.read_source(tmp_path, "yolo")


@given(
    x=st.integers(0, WIDTH - 2),
    y=st.integers(0, HEIGHT - 2),
    w=st.integers(1, WIDTH),
    h=st.integers(1, HEIGHT),
)
def test_a_box_is_the_same_in_every_format(x: int, y: int, w: int, h: int) -> None:
    import xml.etree.ElementTree as ET

    from workbench.data.readers import kitti, voc, yolo

    wanted = (x, y, x + w, y + h)
    fractions = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
    found = yolo._box(["0", *map(repr, fractions)], "", yolo._Description({0: "car"})).corners
    scaled = (found[0] * WIDTH, found[1] * HEIGHT, found[2] * WIDTH, found[3] * HEIGHT)
    assert scaled == pytest.approx(wanted, abs=1e-9)
    entry = ET.fromstring(  # noqa: S314 - written two lines below
        f"<object><name>car</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
    )
    assert voc._box(entry, "").corners == wanted
    row = f"Car 0 0 0 {x} {y} {x + w} {y + h} 1 1 1 1 1 1 1".split()
    assert kitti._object_box(row, "").corners == wanted


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("kitti_3frames", ("kitti", 3, 10)),
        ("trapedesveh/test", ("voc", 46, 232)),
        ("camvid", ("coco", 396, 3823)),
        ("labelstudio_samples/tests/custom/converter/data/test_import_yolo_data", ("yolo", 7, 25)),
        ("mmdet3d_samples/demo/data/nuscenes", ("images", 6, 0)),
    ],
)
def test_formats_of_real_sources_are_detected(
    shared_data: Path, folder: str, expected: tuple[str, int, int]
) -> None:
    found = readers.read_source(shared_data / folder)
    boxes = sum(len(frame.boxes) for frame in found.frames)
    assert (found.format, len(found.frames), boxes) == expected
    assert not found.problems
