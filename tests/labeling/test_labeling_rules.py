"""Labeling rules: labelers, priority and minimum time by slice; gold frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.labeling.conftest import MODEL, SCHEMA, Sample
from workbench.core.errors import ParameterError
from workbench.data.slices import frame_slices
from workbench.labeling import LabelingOptions, LabelingRule, make_batch
from workbench.labeling.answers import labelers_needed
from workbench.labeling.batches import frame_requirements, load_labeling_rules
from workbench.labeling.sender import priority_order
from workbench.records import dataset
from workbench.records.frames import Conditions, Frame, Light, Role, Weather
from workbench.records.types import LabelBatch, SelectedFrame, Selection

VULNERABLE = SCHEMA.model_copy(update={"vulnerable": ("pedestrian",)})
NIGHT = Frame(
    id="a" * 64,
    drive="d",
    index=0,
    width=9,
    height=9,
    suffix=".jpg",
    conditions=Conditions(light=Light.NIGHT, weather=Weather.RAIN, construction=True),
    role=Role.SAFETY,
    events=("cut_in",),
)


def test_slices_have_the_names_of_evaluation() -> None:
    assert frame_slices(NIGHT, ["pedestrian"], VULNERABLE) == (
        *("light=night", "weather=rain", "construction", "role=safety", "event=cut_in", "vru"),
    )
    bare = NIGHT.model_copy(update={"conditions": Conditions(), "role": None, "events": ()})
    assert frame_slices(bare, ["car"], VULNERABLE) == ()


def test_of_several_rules_the_highest_value_counts() -> None:
    rules = (
        LabelingRule("light=night", labelers=2, priority=1),
        LabelingRule("role=safety", labelers=3, min_seconds=8),
        LabelingRule("vru", labelers=9),
    )
    (need,) = frame_requirements(LabelingOptions(rules), [(NIGHT, ["car"])], VULNERABLE)
    assert (need.labelers, need.priority, need.least_s) == (3, 1, 8)
    assert need.slices == ("light=night", "role=safety")
    assert frame_requirements(LabelingOptions(), [(NIGHT, ["car"])], VULNERABLE) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{slice: vru, labelers: two}]", "0.labelers: Input should be a valid integer"),
        ("[{slice: vru, eyes: 2}]", "0.eyes: Unexpected keyword argument"),
        ("[{slice: vru, labelers: 0}]", "0.labelers: Input should be greater than or equal to 1"),
        ("slice: vru", "should be a valid list"),
        ("[{slice: vru", "invalid YAML"),
    ],
)
def test_invalid_rules_say_what_is_wrong_and_how_to_write_them(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message) as error:
        load_labeling_rules(path)
    assert "slice: light=night, labelers: 2" in str(error.value.hint)


def test_rules_are_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "- {slice: light=night, labelers: 2, priority: 1, min_seconds: 8.5}\n- slice: vru\n"
    )
    expected = (LabelingRule("light=night", 2, 1, 8.5), LabelingRule("vru"))
    assert load_labeling_rules(path) == expected


def test_an_unknown_slice_is_an_error() -> None:
    with pytest.raises(ParameterError, match="unknown slice 'light=nigth'") as error:
        LabelingOptions((LabelingRule("light=nigth", labelers=2),))
    assert "light=night" in str(error.value.hint)
    assert LabelingOptions((LabelingRule("event=cut_in"),)).rules


def test_priority_frames_come_first_and_gold_frames_are_mixed_in(sample: Sample) -> None:
    labeled = [frame.id for frame in sample.frames if sample.boxes(frame.id)]
    chosen = [frame.id for frame in sample.frames if frame.id not in labeled]
    selection = Selection(
        dataset=sample.ref,
        budget=len(chosen),
        seed=0,
        method="test",
        chosen=tuple(SelectedFrame(frame=frame, rank=n, score=0) for n, frame in enumerate(chosen)),
    )
    ref = sample.store.put(selection)
    options = LabelingOptions((LabelingRule("all", priority=1),), gold=2)
    batch_ref = make_batch(
        sample.store, sample.ref, ref, MODEL, sample.predictions, options=options
    )
    batch = sample.store.get(batch_ref, LabelBatch)
    assert set(batch.gold) < set(labeled) and len(batch.frames) == len(chosen) + 2
    assert [frame for frame in batch.frames if frame not in batch.gold] == chosen
    assert batch.frames[0] in chosen and batch.frames[-1] in chosen
    needed = labelers_needed(batch)
    assert {needed[frame] for frame in batch.gold} == {2}
    assert {needed[frame] for frame in chosen} == {1}
    urgent = batch.model_copy(
        update={"needs": tuple(n for n in batch.needs if n.frame == batch.frames[-1])}
    )
    assert priority_order(urgent) == [batch.frames[-1], *batch.frames[:-1]]
    rows = dataset.read_json_lines(
        sample.store.payload(batch_ref, "predictions.jsonl"), type(sample.predictions[0])
    )
    assert {row.frame for row in rows} == set(batch.gold)  # started like any other frame

    with pytest.raises(ParameterError, match="have ground-truth labels"):
        make_batch(sample.store, sample.ref, ref, options=LabelingOptions(gold=99))
