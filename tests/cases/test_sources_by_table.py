"""More sources as they are in the wild, a few lines each: files, what is read, what is said."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources import CATEGORIES, coco_box, coco_image, picture, write_picture
from workbench import data
from workbench.core.errors import DataError
from workbench.core.workspace import Workspace

BOX, AREA = [4.0, 5.0, 20.0, 10.0], (4, 5, 24, 15)
YOLO = "0 .21875 .208333333 .3125 .208333333"
KITTI = "Car 0 0 0 4 5 24 15 1 1 1 1 1 9 0"
Files = dict[str, Any]
_seeds = iter(range(10_000))


def _write(folder: Path, files: Files) -> Path:
    """Files by name: None is a picture with bytes of its own, text as it is, others as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            write_picture(path, next(_seeds))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def _coco(*annotations: Any, image: str = "a_1.png", name: str = "a_1.png", **more: Any) -> Files:
    body = {
        "images": [coco_image(1, name)],
        "annotations": list(annotations),
        "categories": list(CATEGORIES),
        **more,
    }
    return {image: None, "labels.coco.json": body}


def _yolo(files: Files, names: str = "names: [car]") -> Files:
    return {**files, "data.yaml": names}


def _voc(inner: str = "", more: str = "", name: str = "car") -> str:
    corners = "<xmin>5</xmin><ymin>6</ymin><xmax>24</xmax><ymax>15</ymax>"
    bndbox = f"<bndbox>{corners}</bndbox>"
    return f"<annotation>{more}<object><name>{name}</name>{inner}{bndbox}</object></annotation>"


def _rotation(angle: float) -> str:
    pair = f"<name>rotation</name><value>{angle}</value>"
    return f"<attributes><attribute>{pair}</attribute></attributes>"


def _scalabel(*labels: Any, name: str = "a-1.png") -> Files:
    return {"a-1.png": None, "labels.json": [{"name": name, "labels": list(labels)}]}


def _fiftyone(**fields: Any) -> Files:
    return {"data/a.png": None, "samples.json": {"samples": [{"filepath": "data/a.png", **fields}]}}


def _detections(**more: Any) -> Any:
    box = [4 / 64, 5 / 48, 20 / 64, 10 / 48]
    return {"_cls": "Detections", "detections": [{"label": "car", "bounding_box": box, **more}]}


def _via(region: Any, attributes: Any) -> Files:
    row = {"shape_attributes": region, "region_attributes": attributes}
    entry = {"filename": "a_1.png", "size": 1, "regions": [row]}
    return {"a_1.png": None, "via.json": {"a_1.png1": entry}}


XYXY = {"x1": 4, "y1": 5, "x2": 24, "y2": 15}
POINTS = [[[4 / 64, 5 / 48], [24 / 64, 5 / 48], [24 / 64, 15 / 48]]]

# What is read as the one box AREA of a car on each of the images named.
_READ: dict[str, tuple[Files, tuple[str, ...]]] = {
    "coco: numbers as text": (_coco(coco_box(1, 1, ["4", "5", "20", "10"])), ("a_1.png",)),  # type: ignore[list-item]
    "coco: bbox is an object (imglab)": (
        _coco({**coco_box(1, 1, []), "bbox": {"x": 4, "y": 5, "width": 20, "height": 10}}),
        ("a_1.png",),
    ),
    "coco: bbox_mode 0 (detectron2)": (
        _coco(coco_box(1, 1, [4, 5, 24, 15], bbox_mode=0)),
        ("a_1.png",),
    ),
    "coco: bbox of zeros beside a polygon": (
        _coco(coco_box(1, 1, [0, 0, 0, 0], segmentation=[[4, 5, 24, 5, 24, 15]])),
        ("a_1.png",),
    ),
    "coco: image id as decimal text": (
        _coco({**coco_box(1, 1, BOX), "image_id": "1.0"}),
        ("a_1.png",),
    ),
    "coco: class in other case, with spaces": (
        _coco(coco_box(1, 1, BOX, 9), categories=[{"id": 9, "name": " CAR\n"}]),
        ("a_1.png",),
    ),
    "coco: a URL with a query": (
        _coco(coco_box(1, 1, BOX), name="https://host/x/a%5f1.png?token=a#b"),
        ("a_1.png",),
    ),
    "coco: a bucket": (
        _coco(coco_box(1, 1, BOX), name="s3://bucket/img/a_1.png", image="img/a_1.png"),
        ("img/a_1.png",),
    ),
    "coco: spaces round a name": (_coco(coco_box(1, 1, BOX), name=" a_1.png\n"), ("a_1.png",)),
    "yolo: labels without the folders of images": (
        _yolo({"images/train/a_1.png": None, "labels/a_1.txt": YOLO}),
        ("images/train/a_1.png",),
    ),
    "yolo: a folder of labels with another name": (
        _yolo({"images/train/a_1.png": None, "labels/train_labels/a_1.txt": YOLO}),
        ("images/train/a_1.png",),
    ),
    "yolo: labels here in a folder and there beside the image": (
        _yolo(
            {"images/a_1.png": None, "labels/a_1.txt": YOLO, "b/b_1.png": None, "b/b_1.txt": YOLO}
        ),
        ("b/b_1.png", "images/a_1.png"),
    ),
    "yolo: names that differ in case": (
        _yolo(
            {f"images/{n}_1.png": None for n in "Aa"} | {f"labels/{n}_1.txt": YOLO for n in "Aa"}
        ),
        ("images/A_1.png", "images/a_1.png"),
    ),
    "yolo: images called train and test": (
        _yolo(
            {f"images/{n}.png": None for n in ("test", "train")}
            | {f"labels/{n}.txt": YOLO for n in ("test", "train")}
        ),
        ("images/test.png", "images/train.png"),
    ),
    "yolo: Darknet export of Roboflow": (
        {"train/a_1.png": None, "train/a_1.txt": YOLO, "train/_darknet.labels": "car"},
        ("train/a_1.png",),
    ),
    "yolo: numbered class names": (
        {"images/a_1.png": None, "labels/a_1.txt": YOLO, "classes.txt": "0: car\n1: bus\n"},
        ("images/a_1.png",),
    ),
    "yolo: class names on one line": (
        {"images/a_1.png": None, "labels/a_1.txt": YOLO, "classes.txt": "car, bus, truck\n"},
        ("images/a_1.png",),
    ),
    "yolo: a comment": (
        _yolo({"images/a_1.png": None, "labels/a_1.txt": f"# cls x y w h\n{YOLO}"}),
        ("images/a_1.png",),
    ),
    "voc: masks of the same names (VOC 2012)": (
        {
            "VOC2012/JPEGImages/1.jpg": None,
            "VOC2012/SegmentationClass/1.png": None,
            "VOC2012/Annotations/1.xml": _voc(more="<filename>1.jpg</filename>"),
            "VOC2012/ImageSets/Main/train.txt": "1\n",
        },
        ("VOC2012/JPEGImages/1.jpg",),
    ),
    "voc: a.png.xml": ({"a_1.png": None, "a_1.png.xml": _voc()}, ("a_1.png",)),
    "voc: names that differ in case": (
        {"A_1.png": None, "A_1.xml": _voc(), "a_1.png": None, "a_1.xml": _voc()},
        ("A_1.png", "a_1.png"),
    ),
    "voc: a rotation of zero (CVAT)": (
        {"a_1.png": None, "a_1.xml": _voc(_rotation(0.0))},
        ("a_1.png",),
    ),
    "kitti: training and testing": (
        {
            "training/image_2/000000.png": None,
            "training/label_2/000000.txt": KITTI,
            "testing/image_2/000000.png": None,
        },
        ("training/image_2/000000.png",),
    ),
    "kitti: endings in upper case": (
        {"image_2/000000.png": None, "label_2/000000.TXT": KITTI},
        ("image_2/000000.png",),
    ),
    "kitti: training and validation": (
        {
            f"{part}/{name}": content
            for part in ("train", "val")
            for name, content in (("image_2/0.png", None), ("label_2/0.txt", KITTI))
        },
        ("train/image_2/0.png", "val/image_2/0.png"),
    ),
    "scalabel: nothing but a URL for a name": (
        _scalabel({"category": "car", "box2d": XYXY}, name="https://s3/x/a-1.png?X=1"),
        ("a-1.png",),
    ),
    "fiftyone: polylines are the ground truth, another field is not": (
        _fiftyone(
            ground_truth={"_cls": "Polylines", "polylines": [{"label": "car", "points": POINTS}]},
            model={"_cls": "Detections", "detections": []},
        ),
        ("data/a.png",),
    ),
    "fiftyone: a single detection": (
        _fiftyone(ground_truth={"_cls": "Detection", **_detections()["detections"][0]}),
        ("data/a.png",),
    ),
}


@pytest.mark.parametrize("case", _READ)
def test_is_read(workspace: Workspace, tmp_path: Path, case: str) -> None:
    files, names = _READ[case]
    result = data.ingest(workspace, _write(tmp_path / "s", files), name="d", workers=1)
    found = sorted(
        (result.sources[one.frame], one.cls, tuple(round(v, 3) for v in one.box.xyxy))
        for one in result.dataset.labels
    )
    assert found == [(name, "car", AREA) for name in names]
    assert len(result.dataset.frames) == len(names)
    assert result.quarantine == ()


_CORNERS = [[4, 5, 24, 15], [30, 20, 60, 40], [10, 10, 30, 30], [5, 6, 23, 14], [2, 3, 20, 12]]

# What is left out or refused, and words of the message.
_LEFT_OUT: dict[str, tuple[Files, str]] = {
    "coco: corners instead of sizes": (
        _coco(*(coco_box(n, 1, box) for n, box in enumerate(_CORNERS))),  # type: ignore[arg-type]
        r"boxes are \[x1, y1, x2, y2\], not COCO's \[x, y, width, height\]: 1 of 5 do not fit",
    ),
    "coco: corners, by the area": (
        _coco(coco_box(1, 1, [4, 5, 24, 15], area=200)),
        r"not COCO's \[x, y, width, height\]: 1 of 1 do not fit",
    ),
    "coco: another bbox_mode": (
        _coco(coco_box(1, 1, BOX, bbox_mode=4)),
        "annotation 1: bbox_mode 4",
    ),
    "coco: predictions": (
        _coco(coco_box(1, 1, BOX, score=0.9)),
        "annotation 1: a model's output with its score 0.9, not a label",
    ),
    "coco: a turned box (CVAT)": (
        _coco(coco_box(1, 1, BOX, attributes={"rotation": 30.0})),
        "annotation 1: a box turned by 30.0 degrees: export it as an upright box",
    ),
    "coco: ids that fit no image": (
        _coco({**coco_box(1, 1, BOX), "image_id": "a_1.png"}),
        "image_id is a_1.png and the like, and ids of images are 1",
    ),
    "coco: another ending": (
        _coco(coco_box(1, 1, BOX), name="a_1.jpg"),
        "a_1.jpg: .*no such file; with another ending there is a_1.png",
    ),
    "coco: a comma too many": (
        {"a_1.png": None, "labels.json": '{"images": [], "annotations": [],}'},
        r"labels\.json \(not JSON: .*line 1 column 34",
    ),
    "yolo: a number with an underscore": (
        _yolo({"images/a_1.png": None, "labels/a_1.txt": YOLO.replace("0 ", "1_0 ", 1)}),
        "line 1: class '1_0' is not a number",
    ),
    "yolo: commas": (
        _yolo({"images/a_1.png": None, "labels/a_1.txt": YOLO.replace(" ", ", ")}),
        "line 1: its numbers are separated by commas",
    ),
    "yolo: no class names": (
        {"images/a_1.png": None, "labels/a_1.txt": YOLO},
        r"labels/a_1\.txt.*YOLO labels need class names \(data\.yaml or classes\.txt\)",
    ),
    "kitti: labels that fit two images": (
        {"image_2/0.png": None, "image_2/0.jpg": None, "label_2/0.txt": KITTI},
        r"image_2/0\.jpg: label_2/0\.txt may belong to another image, too",
    ),
    "voc: a turned box (CVAT)": (
        {"a_1.png": None, "a_1.xml": _voc(_rotation(30.0))},
        "object 1: a box turned by 30.0 degrees",
    ),
    "voc: predictions": (
        {"a_1.png": None, "a_1.xml": _voc("<score>0.8</score>")},
        "object 1: a model's output with its score '0.8'",
    ),
    "scalabel: predictions": (
        _scalabel({"category": "car", "box2d": XYXY, "score": 0.7}),
        "label 1 in labels.json: a model's output with its score 0.7",
    ),
    "fiftyone: a turned box": (
        _fiftyone(ground_truth=_detections(rotation=0.5)),
        "detection 1: a box turned by 0.5 radians",
    ),
    "fiftyone: no class": (_fiftyone(ground_truth=_detections(label=None)), "1: it has no label"),
    "via: no class": (
        _via({"name": "rect", "x": 4, "y": 5, "width": 20, "height": 10}, {}),
        "region 1: it has no attribute, so no class",
    ),
    "via: a polygon of unequal lists": (
        _via({"name": "polygon", "all_points_x": [4, 24, 9], "all_points_y": [5]}, {"c": "car"}),
        "region 1: a polygon with 3 x and 1 y",
    ),
}


@pytest.mark.parametrize("case", _LEFT_OUT)
def test_is_left_out_and_said(workspace: Workspace, tmp_path: Path, case: str) -> None:
    files, words = _LEFT_OUT[case]
    with pytest.raises(DataError, match=words):
        data.ingest(workspace, _write(tmp_path / "s", files), name="d", workers=1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gt.csv", "Filename;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\na_1.png;4;5;24;15;1"),
        ("labels.tsv", "image\tx1\ty1\tx2\ty2\tlabel\na_1.png\t4\t5\t24\t15\tcar"),
        ("train.csv", "a_1.png,4,5,24,15,car"),
        ("train.txt", "img/a_1.png 4,5,24,15,0 30,5,50,15,1"),
        ("gt.txt", "a_1.png;4;5;24;15;11"),
        ("gt/gt.txt", "1,1,4,5,20,10,1,1,1"),
        ("a_1.json", {"box_0": {"2d_bbox": [4, 5, 24, 15], "class": "Car"}}),
        (
            "via3.json",
            {"project": {"vid_list": ["1"]}, "metadata": {"1_x": {"xy": [2, 4, 5, 6, 7]}}},
        ),
        ("train.yaml", "- boxes: [{label: Red, x_min: 4}]\n  path: ./a_1.png"),
        ("drive/tracklet_labels.xml", "<boost_serialization><tracklets/></boost_serialization>"),
        ("annotations.mat", "MATLAB 5.0 MAT-file"),
        ("labels.coco.json.gz", "\x1f\x8b"),
        ("train.tfrecord", "x"),
    ],
)
def test_auto_does_not_take_labeled_images_for_unlabeled_ones(
    workspace: Workspace, tmp_path: Path, name: str, content: Any
) -> None:
    sensors = {"imu.csv": "t,ax,ay\n1,0.1,0.2", "poses.txt": "1 0 0 0 0 1 0 0 0 0 1 0"}
    folder = _write(tmp_path / "s", {"a_1.png": None, **sensors, "meta.json": {"vehicle": "x"}})
    assert data.ingest(workspace, folder, name="d", workers=1).format == "images"
    _write(folder, {name: content})
    with pytest.raises(DataError, match="annotations in an unknown format beside the images") as e:
        data.ingest(workspace, folder, name="d", workers=1)
    assert name in str(e.value)


def test_ignore_is_read_as_iscrowd_is(workspace: Workspace, tmp_path: Path) -> None:
    files = _coco(coco_box(1, 1, BOX, ignore=1), coco_box(2, 1, [30, 5, 9, 9], ignore=0))
    result = data.ingest(workspace, _write(tmp_path / "s", files), name="d", workers=1)
    assert sorted((one.box.x, one.ignore) for one in result.dataset.labels) == [
        (4, True),
        (30, False),
    ]


def test_damaged_exif_does_not_make_an_image_unusable(workspace: Workspace, tmp_path: Path) -> None:
    jpeg, png = picture(1, "JPEG"), picture(2, "PNG")

    def with_exif(body: bytes) -> bytes:
        block = b"Exif\0\0" + body
        return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]

    def with_chunk(name: bytes, body: bytes, crc: int) -> bytes:
        return (
            png[:33]
            + struct.pack(">I", len(body))
            + name
            + body
            + struct.pack(">I", crc)
            + png[33:]
        )

    tag = b"II*\0\x08\0\0\0\x01\0\x12\x01"  # one entry, the orientation
    files = {
        "garbage.jpg": with_exif(b"garbage"),
        "nine.jpg": with_exif(tag + b"\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0"),
        "text.jpg": with_exif(tag + b"\x02\0\x04\0\0\0abc\0\0\0\0\0"),
        "turned.jpg": with_exif(tag + b"\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
        "garbage.png": with_chunk(b"eXIf", b"garbage", zlib.crc32(b"eXIfgarbage")),
        "checksum.png": with_chunk(b"tEXt", b"a\0b", 5),
    }
    (tmp_path / "s").mkdir()
    for name, content in files.items():
        (tmp_path / "s" / name).write_bytes(content)
    result = data.ingest(workspace, tmp_path / "s", name="d", workers=1)
    assert sorted(result.sources.values()) == ["garbage.jpg", "garbage.png", "text.jpg"]
    details = {entry.file: entry.detail for entry in result.quarantine}
    assert "EXIF orientation 6" in details["turned.jpg"]
    assert "EXIF orientation 9" in details["nine.jpg"]
    assert details["checksum.png"] == "a damaged PNG image"
