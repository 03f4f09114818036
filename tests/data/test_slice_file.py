"""Slices in a YAML file mean what the standard ones mean, compose, and name mistakes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from workbench.core.errors import ParameterError, VerificationError
from workbench.data.schema import FRONT_CAMERA
from workbench.data.slice_file import load_slices, parse_slice, read_predicates
from workbench.data.slices import STANDARD_SLICES
from workbench.evaluation.matching import build_evaluation_set, match_slice
from workbench.records.dataset import Dataset
from workbench.records.frames import (
    Box,
    Conditions,
    Frame,
    Label,
    Light,
    Origin,
    Weather,
)

PROJECT_SLICES = Path(__file__).resolve().parents[2] / "pipelines" / "slices.yaml"


def frame(light: str = "night", weather: str = "rain", **more: object) -> Frame:
    fields: dict[str, object] = {
        "id": "a" * 64,
        "drive": "d",
        "index": 3,
        "width": 640,
        "height": 480,
        "suffix": ".jpg",
        "conditions": Conditions(light=Light(light), weather=Weather(weather)),
    }
    return Frame.model_validate(fields | more)


def label(side: float = 20, cls: str = "car", **more: object) -> Label:
    box = Box(x=0, y=0, w=side, h=side)
    fields = {"frame": "a" * 64, "cls": cls, "box": box, "origin": Origin.HUMAN}
    return Label.model_validate(fields | more)


FRAMES = [
    frame(light, weather)
    for light in ("day", "dusk", "night", "unknown")
    for weather in ("clear", "rain", "fog", "snow", "unknown")
] + [frame(conditions=Conditions(construction=True))]
LABELS = [
    label(side, occluded=hidden) for side in (5, 32, 50, 96, 200) for hidden in (None, 0.3, 0.4, 1)
]


def test_the_projects_file_holds_the_standard_slices():
    parts = load_slices(PROJECT_SLICES)
    assert [part.name for part in parts] == [part.name for part in STANDARD_SLICES]
    for part, standard in zip(parts, STANDARD_SLICES, strict=True):
        assert part.class_names(FRONT_CAMERA) == standard.class_names(FRONT_CAMERA)
        assert part.area == standard.area
        for one in FRAMES:
            assert (part.frame is None or part.frame(one)) == (
                standard.frame is None or standard.frame(one)
            )
        for one in LABELS:
            assert (part.label is None or part.label(one)) == (
                standard.label is None or standard.label(one)
            )


def holds(where: object, one: Frame) -> bool:
    part = parse_slice("x", where)
    assert part.frame is not None
    return part.frame(one)


def test_predicates_compose_and_unknown_meets_nothing():
    rain, night = {"environment.weather": "rain"}, {"environment.illumination": "night"}
    both = frame("night", "rain")
    assert holds({"all": [rain, night]}, both)
    assert not holds({"all": [rain, night]}, frame("day", "rain"))
    assert holds({"any": [rain, night]}, frame("day", "rain"))
    assert holds({"environment.weather": ["rain", "snow"]}, frame("day", "snow"))
    assert holds({"not": rain}, frame("day", "snow"))
    unknown = frame("day", "unknown")
    assert not holds(rain, unknown)
    assert not holds({"not": rain}, unknown)
    assert not holds({"not": {"any": [rain, night]}}, unknown)
    assert holds({"not": {"all": [rain, night]}}, unknown), "by day it is not rain by night"
    assert holds({"any": [rain, {"environment.illumination": "day"}]}, unknown)
    assert holds({"attribute.road": "city"}, frame(attributes={"road": "city"}))
    assert not holds({"not": {"attribute.road": "city"}}, frame())
    assert holds({"dynamic.event": "cut_in"}, frame(events=("cut_in",)))
    assert holds({"not": {"dynamic.event": "cut_in"}}, frame()), "a drive without events has none"
    assert holds({"time.drive_s": {"min": 1}}, frame(timestamp_us=1_500_000))
    assert not holds({"time.drive_s": {"min": 1}}, frame())


def test_frames_and_labels_are_joined_at_the_top():
    where = {
        "all": [
            {"environment.illumination": "night", "agent.class": ["cyclist", "pedestrian"]},
            {"any": [{"label.occluded": {"min": 0.4}}, {"box.height_px": {"max": 30}}]},
            {"box.area_px2": {"min": 100, "max": 5000}},
        ]
    }
    part = parse_slice("x", where)
    assert part.frame(frame("night"))
    assert not part.frame(frame("day"))
    assert set(part.class_names(FRONT_CAMERA)) == {"cyclist", "pedestrian"}
    assert part.area == (100, 5000)
    assert part.label(label(50, occluded=0.5))
    assert part.label(label(20))
    assert not part.label(label(50))
    assert not part.judges_all_boxes


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"environment.wether": "rain"}, "unknown key 'environment.wether'"),
        ({"environment.weather": "rian"}, "unknown value 'rian'"),
        ({"environment.weather": []}, "needs a word"),
        ({"environment.weather": {"min": 3}}, "needs a word"),
        ({"box.height_px": 30}, "needs {min"),
        ({"box.height_px": {"min": 3, "max": 2}}, "above max"),
        ({"box.height_px": {"least": 3}}, "needs {min"),
        ({"any": [{"role": "val"}, {"agent.class": "car"}]}, "frames is joined with one about"),
        ({"not": {"agent.class": "vru"}}, "vru cannot be inside"),
        ({"any": []}, "need a list"),
        ([], "invalid predicate"),
        ({3: "x"}, "invalid key 3"),
    ],
)
def test_mistakes_in_a_predicate_are_named(where, message):
    with pytest.raises(ParameterError, match=message):
        parse_slice("x", where)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slices: {}", "schema_version"),
        ("{schema_version: 1}", "needs `slices:`"),
        ("{schema_version: 1, slices: {}, more: 1}", "unknown key 'more'"),
        ("{schema_version: 1, slices: {a: {wher: {}}}}", "needs `where:`"),
        ("{schema_version: 1, slices: {all: {where: {role: val}}}}", "invalid name"),
        ("{schema_version: 1, slices: {../x: {where: {role: val}}}}", "slice name"),
        ("slices: [", "cannot be read"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    path = tmp_path / "slices.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message):
        load_slices(path)
    with pytest.raises(ParameterError, match="does not exist"):
        load_slices(tmp_path / "none.yaml")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "slices.yaml"
    path.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(VerificationError, match="would run code"):
        load_slices(path)


def test_gates_and_labeling_rules_name_slices_of_the_file(tmp_path):
    from workbench.evaluation.gates import load_rules
    from workbench.labeling import LabelingOptions, LabelingRule
    from workbench.labeling.batches import frame_requirements

    where = {"all": [{"environment.weather": "snow"}, {"agent.class": "vru"}]}
    path = tmp_path / "slices.yaml"
    path.write_text(yaml.safe_dump({"schema_version": 1, "slices": {"snow_vru": {"where": where}}}))
    parts = load_slices(path)
    gate = {"name": "g", "kind": "floor", "metric": "recall", "bound": 0.5, "slice": "snow_vru"}
    gates = tmp_path / "gates.yaml"
    gates.write_text(yaml.safe_dump({"schema_version": 1, "gates": [gate]}))
    assert load_rules(gates, parts).gates[0].slice == "snow_vru"
    with pytest.raises(ParameterError, match="unknown value 'snow_vru'"):
        load_rules(gates)
    options = LabelingOptions((LabelingRule("snow_vru", labelers=2),), slices=parts)
    needs = frame_requirements(options, [(frame("day", "snow"), ["pedestrian"])], FRONT_CAMERA)
    assert [need.slices for need in needs] == [("snow_vru",)]
    assert not frame_requirements(options, [(frame("day", "snow"), ["car"])], FRONT_CAMERA)


def test_training_labeling_and_judging_agree_on_who_is_in_a_slice():
    """`Slice.holds`, by which training samples, beside what evaluation counts."""
    frames, labels = [], []
    for number, (light, cls, side, hidden) in enumerate(
        itertools.product(
            ("day", "night"), ("car", "pedestrian", None), (20.0, 32.0, 96.0), (None, 0.4)
        )
    ):
        identity = f"{number:064x}"
        frames.append(frame(light, id=identity, drive=f"d{number}"))
        if cls:
            labels.append(label(side, cls, frame=identity, occluded=hidden))
            labels.append(label(side, "cyclist", frame=identity, ignore=True))
    dataset = Dataset("x", FRONT_CAMERA, (), tuple(frames), tuple(labels))
    data = build_evaluation_set(dataset, ())
    parts = load_slices(PROJECT_SLICES)
    assert read_predicates(PROJECT_SLICES).keys() == {part.name for part in parts[1:]}
    for part in parts:
        table = match_slice(data, part)
        of_labels = part.classes is not None or not part.judges_all_boxes
        rows = set(table.truth_frame) if of_labels else set(table.frames)
        held = {
            one.id
            for one in frames
            if part.holds(one, dataset.labels_by_frame[one.id], FRONT_CAMERA)
        }
        assert held == {data.frames[row].id for row in rows}, part.name
        assert len(held) < len(frames) or part.name in ("all", "weather=rain")
