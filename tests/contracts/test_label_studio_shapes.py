"""Questions and shapes in a real Label Studio, compared with its own exports."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Sequence

import pytest
import requests

from tests.contracts.conftest import exported_tasks
from tests.labeling.conftest import HEIGHT, WIDTH, Sample, frame_regions, make_sample
from tests.servers import Servers
from workbench import labeling, services
from workbench.core.errors import ParameterError, Waiting
from workbench.labeling import LabelStudio, label_config
from workbench.labeling import regions as geometry
from workbench.labeling.answers import AnswerRow, region_id
from workbench.labeling.regions import DrawnObject, parse_result, to_regions
from workbench.labeling.review import Suspect, _candidates, select_for_review
from workbench.records import dataset
from workbench.records.base import Ref, digest_of
from workbench.records.frames import Box, Label, LabelSchema, Point, Question, RotatedBox
from workbench.records.types import Prediction

FULL = LabelSchema(
    name="dashcam",
    version=1,
    classes=("car", "pedestrian"),
    shapes=("box", "turned", "polygon"),
    box_questions=(Question(name="doors", answers=("open", "shut")),),
    frame_questions=(Question(name="weather", answers=("clear", "rain")),),
    tracks=True,
)
UPRIGHT = DrawnObject("upright", "car", Box(x=10.123, y=20.456, w=30.789, h=41.01), occluded=0.25)
TURNED = RotatedBox(cx=120.5, cy=70.25, w=60.125, h=20.5, degrees=33.3)
OUTLINE = ((150.5, 20.25), (220.75, 30.5), (180.1, 90.9))
SHAPES = (
    UPRIGHT,
    DrawnObject(
        "turned",
        "pedestrian",
        geometry.enclosing_box(geometry.rotated_corners(TURNED)),
        turned=TURNED,
        track="17",
        attributes={"doors": "open"},
    ),
    DrawnObject("outline", "car", geometry.enclosing_box(OUTLINE), polygon=OUTLINE, truncated=0.75),
)


@pytest.fixture
def fresh(servers: Servers, request: pytest.FixtureRequest) -> Sample:
    return make_sample(servers.workspace, request.node.name[:40], 1)


def full_batch(sample: Sample, schema: LabelSchema = FULL) -> Ref:
    return labeling.make_batch(sample.store, sample.ref, sample.selection, schema=schema)


def test_every_shape_and_attribute_is_collected(fresh: Sample, server: LabelStudio) -> None:
    batch = full_batch(fresh)
    sent = labeling.send(fresh.workspace, server, batch)
    task = server.task_by_frame(sent.project, digest_of(batch))[fresh.frames[0].id]
    drawn = [part for shape in SHAPES for part in to_regions(shape, WIDTH, HEIGHT)]
    server.annotate(task, [*drawn, *frame_regions({"weather": "rain"}, "a comment")])
    ref = labeling.collect(fresh.workspace, server, batch)

    rows = dataset.read_json_lines(fresh.store.payload(ref, "labels.jsonl"), Label)
    labels = {
        ("turned" if one.turned else "outline" if one.polygon else "upright"): one for one in rows
    }
    assert labels["upright"].box.xyxy == pytest.approx(UPRIGHT.box.xyxy, abs=1e-6)
    assert labels["upright"].occluded == 0.25
    back = labels["turned"]
    assert back.turned is not None and back.turned.degrees == TURNED.degrees
    assert (back.turned.cx, back.turned.cy) == pytest.approx((TURNED.cx, TURNED.cy), abs=1e-6)
    assert (back.track, back.attributes) == ("17", {"doors": "open"})
    assert labels["outline"].polygon is not None and labels["outline"].truncated == 0.75
    for ours, theirs in zip(labels["outline"].polygon, OUTLINE, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    (row,) = dataset.read_json_lines(fresh.store.payload(ref, "answers.jsonl"), AnswerRow)
    assert (row.choices, row.comment) == ({"weather": "rain"}, "a comment")


def test_a_review_starts_from_the_existing_shapes(fresh: Sample, server: LabelStudio) -> None:
    """A review of labels and an adjudication show them as they are, and know them when accepted."""
    frame = fresh.frames[0].id
    first = full_batch(fresh)
    sent = labeling.send(fresh.workspace, server, first)
    task = server.task_by_frame(sent.project, digest_of(first))[frame]
    server.annotate(task, [part for one in SHAPES for part in to_regions(one, WIDTH, HEIGHT)])
    collected = labeling.collect(fresh.workspace, server, first)
    labels = list(dataset.read_json_lines(fresh.store.payload(collected, "labels.jsonl"), Label))
    merged = labeling.merge(fresh.store, fresh.dataset, collected)
    assert merged.ref is not None

    odd = [Suspect(frame, "missed", 1.0, "somebody should look")]
    review = select_for_review(fresh.store, merged.ref, odd, 1)
    batch = labeling.make_batch(fresh.store, merged.ref, review, schema=FULL)
    sent = labeling.send(fresh.workspace, server, batch)
    task = server.task_by_frame(sent.project, digest_of(batch))[frame]
    predictions = server._client.request("GET", "/api/predictions", params={"task": task}).json()
    shown = predictions[0]["result"]
    read = parse_result(shown, WIDTH, HEIGHT, FULL)
    assert {shape(one) for one in read.objects} == {shape(one) for one in labels}
    server.annotate(task, shown)
    again = labeling.collect(fresh.workspace, server, batch)
    rows = dataset.read_json_lines(fresh.store.payload(again, "labels.jsonl"), Label)
    assert {shape(one) for one in rows} == {shape(one) for one in labels}

    drawn = {"ann": labels, "ben": [one for one in labels if one.polygon is None]}
    candidates = _candidates(frame, drawn)
    assert {shape(one) for one in candidates} == {shape(one) for one in labels}
    assert len({region_id(one) for one in candidates}) == len(SHAPES)


def shape(one: Label | Prediction | DrawnObject) -> tuple[str, str]:
    """What is drawn, to a millionth of a pixel."""
    points: Sequence[float] = one.box.xyxy
    kind = "box"
    if one.turned is not None:
        kind, points = (
            "turned",
            [axis for point in geometry.rotated_corners(one.turned) for axis in point],
        )
    elif one.polygon is not None:
        kind, points = "polygon", [axis for point in one.polygon for axis in point]
    return kind, " ".join(f"{point:.6f}" for point in points)


def test_label_studio_exports_contain_the_same_shapes(fresh: Sample, server: LabelStudio) -> None:
    """COCO, YOLO and YOLO-OBB as the server converts them, in pixels, against what was drawn."""
    batch = full_batch(fresh)
    sent = labeling.send(fresh.workspace, server, batch)
    task = server.task_by_frame(sent.project, digest_of(batch))[fresh.frames[0].id]
    server.annotate(task, [part for one in SHAPES for part in to_regions(one, WIDTH, HEIGHT)])

    coco = json.loads(export(fresh, server, sent.project, "COCO")["result.json"])
    boxes = [one["bbox"] for one in coco["annotations"] if not one["segmentation"]]
    upright = [UPRIGHT.box.x, UPRIGHT.box.y, UPRIGHT.box.w, UPRIGHT.box.h]
    assert any(box == pytest.approx(upright, abs=1e-6) for box in boxes)
    (outline,) = (one["segmentation"][0] for one in coco["annotations"] if one["segmentation"])
    assert outline == pytest.approx([axis for point in OUTLINE for axis in point], abs=1e-6)

    rows = numbers(export(fresh, server, sent.project, "YOLO"))
    cx, cy, w, h = next(row[1:] for row in rows if len(row) == 5 and row[0] == 0)
    box = UPRIGHT.box
    assert cx * WIDTH == pytest.approx(box.x + box.w / 2, abs=1e-6)
    assert cy * HEIGHT == pytest.approx(box.y + box.h / 2, abs=1e-6)
    assert (w * WIDTH, h * HEIGHT) == pytest.approx((box.w, box.h), abs=1e-6)

    rows = numbers(export(fresh, server, sent.project, "YOLO_OBB"))
    quads = [
        [(row[i] * WIDTH, row[i + 1] * HEIGHT) for i in range(1, 9, 2)]
        for row in rows
        if len(row) == 9
    ]
    ours = geometry.rotated_corners(TURNED)
    assert min(distance(ours, quad) for quad in quads) < 1e-6


def test_the_project_has_the_schema(fresh: Sample, server: LabelStudio) -> None:
    sent = labeling.send(fresh.workspace, server, full_batch(fresh))
    project = server.project(sent.project)
    assert project is not None
    back = label_config.parse_labeling_config(project.config)
    assert back == FULL


def test_the_guide_is_linked_and_served_with_the_project(
    fresh: Sample, server: LabelStudio
) -> None:
    sent = labeling.send(fresh.workspace, server, full_batch(fresh))
    project = get(fresh, server, f"/api/projects/{sent.project}").json()
    match = re.search(r'href="(/data/local-files/[^"]+)"', project["expert_instruction"])
    assert match
    page = get(fresh, server, match[1])
    assert page.headers["Content-Type"].startswith("text/html")
    assert "Labeling guide: dashcam version 1" in page.text


def test_a_compatible_schema_updates_the_project_and_another_is_an_error(
    servers: Servers, server: LabelStudio
) -> None:
    first, second, third = (make_sample(servers.workspace, f"version {n}", 1) for n in (1, 2, 3))
    title = f"versions {first.dataset.name} {digest_of(first.ref)[:8]}"
    sent = labeling.send(first.workspace, server, full_batch(first), title)
    more = FULL.model_copy(update={"version": 2, "classes": (*FULL.classes, "tram")})
    labeling.send(second.workspace, server, full_batch(second, more), title)
    project = server.project(sent.project)
    assert project is not None and project.tasks == 2
    updated = label_config.parse_labeling_config(project.config)
    assert (updated.name, updated.version) == ("dashcam", 2)
    # The older batch still fits: nothing that was drawn for it has lost its meaning.
    assert labeling.send(first.workspace, server, full_batch(first), title).sent == 0

    fewer = FULL.model_copy(update={"version": 3, "classes": ("car",)})
    with pytest.raises(ParameterError, match="'pedestrian' is removed") as refused:
        labeling.send(third.workspace, server, full_batch(third, fewer), title)
    assert "migrate" in str(refused.value.hint)


def test_a_removed_class_is_returned_with_the_reason(fresh: Sample, server: LabelStudio) -> None:
    batch = full_batch(fresh)
    sent = labeling.send(fresh.workspace, server, batch)
    task = server.task_by_frame(sent.project, digest_of(batch))[fresh.frames[0].id]
    regions = to_regions(DrawnObject("r", "boat", Box(x=1, y=1, w=9, h=9)), WIDTH, HEIGHT)
    server.annotate(task, regions)
    with pytest.raises(Waiting, match="answers to correct") as waiting:
        labeling.collect(fresh.workspace, server, batch)
    assert "class is boat, schema has car, pedestrian" in str(waiting.value.hint)
    (shown,) = exported_tasks(server, sent.project)
    assert "class is boat" in shown["data"][label_config.NOTE]


def test_predictions_of_every_shape_are_imported(fresh: Sample, server: LabelStudio) -> None:
    """Its own validator agrees with what we make of a schema."""
    sent = labeling.send(fresh.workspace, server, full_batch(fresh))
    result = [part for one in SHAPES for part in to_regions(one, WIDTH, HEIGHT, score=0.5)]
    data = {**exported_tasks(server, sent.project)[0]["data"], "batch": "other"}
    started = {"model_version": "m", "score": 0.5, "result": result}
    server.import_tasks(sent.project, [{"data": data, "predictions": [started]}])
    (task,) = (
        one for one in exported_tasks(server, sent.project) if one["data"]["batch"] == "other"
    )
    (prediction,) = get(fresh, server, "/api/predictions", task=task["id"]).json()
    read = parse_result(prediction["result"], WIDTH, HEIGHT, FULL)
    assert len(read.objects) == len(SHAPES) and not read.invalid


def get(sample: Sample, server: LabelStudio, path: str, **query: object) -> requests.Response:
    token = services.label_studio_admin(sample.workspace).token
    headers = {"Authorization": f"Token {token}"}
    answer = requests.get(f"{server.url}{path}", params=query, headers=headers, timeout=60)  # type: ignore[arg-type]
    answer.raise_for_status()
    return answer


def export(sample: Sample, server: LabelStudio, project: int, kind: str) -> dict[str, str]:
    answer = get(sample, server, f"/api/projects/{project}/export", exportType=kind)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = [name for name in archive.namelist() if name.endswith((".json", ".txt"))]
        return {name: archive.read(name).decode() for name in names}


def numbers(files: dict[str, str]) -> list[list[float]]:
    """The rows of YOLO's label files."""
    rows: list[list[float]] = []
    for name, text in files.items():
        if name.startswith("labels/"):
            rows += [[float(part) for part in row.split()] for row in text.splitlines()]
    return rows


def distance(ours: Sequence[Point], theirs: Sequence[Point]) -> float:
    """How far the corner that lies worst is from the nearest one of the others."""
    return max(min(math.dist(one, other) for other in theirs) for one in ours)
