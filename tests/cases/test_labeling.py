"""Annotations and images as labeling tools and cameras write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.labeling.conftest import make_sample
from tests.servers import Servers
from workbench import data, labeling, services
from workbench.cli.labeling import label
from workbench.core.errors import DataError
from workbench.core.workspace import Workspace
from workbench.data.images import open_rgb
from workbench.detection.preprocessing import load_rgb
from workbench.labeling import projects
from workbench.labeling.regions import DrawnObject, parse_result, to_regions, without_copies
from workbench.records import references
from workbench.records.base import digest_of
from workbench.records.frames import Box, LabelSchema

SCHEMA = LabelSchema(name="s", version=1, classes=("car", "truck"))


def _regions(name: str, cls: str = "car", occluded: float | None = None) -> list[dict[str, object]]:
    box = Box(x=10, y=20, w=30, h=40)
    return [dict(one) for one in to_regions(DrawnObject(name, cls, box, occluded), 317, 211)]


def test_a_copy_on_top_of_a_box_is_one_object() -> None:
    drawn = [*_regions("a"), *_regions("b"), *_regions("c", "truck")]
    read = without_copies(parse_result(drawn, 317, 211, SCHEMA))
    assert [one.region for one in read.objects] == ["a", "c"]
    assert not read.invalid
    drawn = [*_regions("a"), *_regions("b", occluded=0.75)]
    other = without_copies(parse_result(drawn, 317, 211, SCHEMA))
    assert [one.region for one in other.objects] == ["a"]
    assert "the same shape as region a with other answers" in other.invalid[0].detail


def test_annotations_without_size_and_relations_are_read() -> None:
    (region,) = _regions("a")
    unsized = {**region, "original_width": None, "original_height": None}
    relation = {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"}
    read = parse_result([unsized, relation], 317, 211, SCHEMA)
    assert [one.box.xyxy for one in read.objects] == [pytest.approx((10, 20, 40, 60))]
    assert not read.invalid


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "rectangle"}, "region is of type rectangle, without a class"),
        ({"type": "keypointlabels"}, "region is of type keypointlabels, expected box"),
        ({"value": {"rectanglelabels": "bus"}}, "class is bus, schema has car, truck"),
        ({"value": {"rotation": 45}}, "the box is rotated; draw it upright"),
        ({"value": {"x": "3"}}, "position or size is not a number"),
        ({"original_width": "318", "original_height": "211"}, "an image of 318x211"),
        ({"occluded": ["no", "partly"]}, r"occluded is 'no\npartly', expected one of no, partly"),
        ({"occluded": ["sometimes"]}, "occluded is 'sometimes', expected one of"),
    ],
)
def test_what_is_wrong_with_a_region_is_said(changes: dict[str, Any], words: str) -> None:
    region: dict[str, Any] = _regions("a")[0]
    value = {**region["value"], **changes.pop("value", {})}
    answer = changes.pop("occluded", None)
    choice = {"id": "a", "type": "choices", "from_name": "occluded", "value": {"choices": answer}}
    drawn = [{**region, "value": value, **changes}, *([choice] if answer else [])]
    read = parse_result(drawn, 317, 211, SCHEMA)
    assert not read.objects
    assert words in read.invalid[0].detail


def test_sizes_as_text_and_full_turns_are_read() -> None:
    region: dict[str, Any] = _regions("a")[0]
    region |= {"original_width": "317", "original_height": 211.0}
    region["value"] = {**region["value"], "rotation": 360, "rectanglelabels": "car"}
    assert [one.box.x for one in parse_result([region], 317, 211, SCHEMA).objects] == [
        pytest.approx(10)
    ]


def test_browsers_get_a_png_of_a_tiff(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").mkdir()
    Image.new("RGB", (8, 6), "red").save(tmp_path / "s" / "a_0001.tiff")
    (frame,) = data.ingest(workspace, tmp_path / "s", name="d").dataset.frames
    address = projects.image_address(workspace, frame)
    assert address.endswith(".png")
    png = workspace.served / address.partition("?d=")[2]
    with Image.open(png) as image:
        assert (image.format, image.getpixel((0, 0))) == ("PNG", (255, 0, 0))
    monkeypatch.setenv("WORKBENCH_MEDIA_URL", "s3://bucket/media")
    with pytest.raises(DataError, match=r"browsers cannot show the \.tiff image"):
        projects.image_address(workspace, frame)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_images_are_scaled_everywhere(
    workspace: Workspace, tmp_path: Path, suffix: str
) -> None:
    values = np.array([[0, 255, 256, 4095, 32768, 65535]], np.uint16)
    path = tmp_path / "s" / f"a_0001.{suffix}"
    path.parent.mkdir()
    Image.fromarray(values).save(path)
    wanted = [0, 0, 1, 15, 128, 255]
    assert np.asarray(open_rgb(path))[0, :, 0].tolist() == wanted
    assert load_rgb(path)[0, :, 2].tolist() == wanted
    assert not data.ingest(workspace, tmp_path / "s", name="d").notes
    Image.fromarray(np.minimum(values, 4095)).save(tmp_path / "s" / f"a_0002.{suffix}")
    (note,) = data.ingest(workspace, tmp_path / "s", name="d").notes
    assert f"1 16-bit image with no value above 4095, such as a_0002.{suffix}" in note


def test_every_new_version_has_a_number_of_its_name(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Case L02: `label collect --merge`, `withdraw` and `migrate`, and what a name then means."""
    workspace = servers.workspace
    monkeypatch.setenv("WORKBENCH_HOME", str(workspace.root))
    sample = make_sample(workspace, "lscase", 2)
    references.register_dataset(workspace, sample.ref)
    sent = _label("send", sample.selection)
    admin = services.label_studio_admin(workspace)
    server = labeling.connect(admin.url, admin.token)
    drawn = [dict(region) for region in _regions("a")]
    for task in server.task_by_frame(sent["project"], digest_of(sent["batch"])).values():
        size = {
            "original_width": sample.frames[0].width,
            "original_height": sample.frames[0].height,
        }
        server.annotate(task, [{**region, **size} for region in drawn], lead_time_s=20)
    merged = _label("collect", sent["batch"], "--merge")
    assert merged["version"] == "lscase@2"
    withdrawn = _label("withdraw", "lscase", "--frame", sample.frames[0].id, "--reason", "blurred")
    assert withdrawn["version"] == "lscase@3"
    schema = tmp_path / "next.yaml"
    schema.write_text("name: dashcam\nversion: 2\nclasses: [car, pedestrian, tram]\n")
    migrated = _label("migrate", "lscase", str(schema))
    assert migrated["version"] == "lscase@4"
    versions = [
        each for each in references.list_dataset_versions(workspace) if each.name == "lscase"
    ]
    assert [each.ref for each in versions] == [
        sample.ref,
        *(made["dataset"] for made in (merged, withdrawn, migrated)),
    ]
    assert references.resolve_dataset(workspace, "lscase") == migrated["dataset"]


def _label(*arguments: str) -> Any:
    done = CliRunner().invoke(label, [*arguments, "--json"], catch_exceptions=False)
    return json.loads(done.stdout)
