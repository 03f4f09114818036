"""``workbench mine`` as people type it: what it prints, and what it says to rubbish."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.curation.embedding.test_encoders import save_model
from workbench import cli
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Label, Origin, Role
from workbench.records.store import Store
from workbench.records.types import LabelBatch, LabelSet, MiningReport, Selection


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(list(arguments))
    output = capsys.readouterr()
    assert (exit_info.value.code or 0) == status, output.err
    return output.out, output.err


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(list(arguments))
    assert exit_info.value.code
    return capsys.readouterr().err


def labelled(store: Store, selection_ref: Ref, *, minutes: float | None, blind: bool = True) -> Ref:
    """A label set in which every second mined frame holds a cyclist, and no control frame."""
    selection = store.get(selection_ref, Selection)
    batch = store.put(
        LabelBatch(
            dataset=selection.dataset,
            selection=selection_ref,
            model=None,
            label_schema=datasets.load_dataset(store, selection.dataset).label_schema,
            frames=tuple(choice.frame for choice in selection.chosen),
            blind=blind,
        ),
        {"predictions.jsonl": b""},
    )
    who = "mia@example.com" if minutes else "replay-1@replay.workbench.invalid"
    origin = Origin.HUMAN if minutes else Origin.REPLAYED
    box = Box(x=2, y=2, w=20, h=20)
    labels = [
        Label(
            frame=choice.frame,
            cls="cyclist" if choice.arm == "mined" and choice.rank % 2 else "car",
            box=box,
            origin=origin,
            annotator=who,
        )
        for choice in selection.chosen
    ]
    answers = [
        AnswerRow(frame=choice.frame, annotator=who, boxes=1, minutes=minutes)
        for choice in selection.chosen
    ]
    record = LabelSet(batch=batch, annotators=(), labels=len(labels), simulated=minutes is None)
    payload: dict[str, Any] = {
        "labels.jsonl": datasets.to_json_lines(labels),
        "answers.jsonl": datasets.to_json_lines(answers),
        "annotations.jsonl": b"",
    }
    return store.put(record, payload)


def test_from_a_dataset_to_a_selection_with_reasons(
    store: Store, dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "mine", "drawn", "--budget", "8", "--quota", "night=3")
    assert "7 mined + 1 random of 32 frames in the pool" in out
    assert "most typical" in out
    assert "next: workbench label send selection/" in out
    assert "not in FiftyOne: mongod is stopped" in out
    assert (
        "baseline on drawn@1, AP50 not measured" in err
        and "the newest that a pipeline trained" in err
    )
    output = json.loads(run(capsys, "mine", "drawn", "--budget", "8", "--control", "--json")[0])
    assert output["arms"] == {"mined": 8, "control": 8}
    assert Counter(choice["arm"] for choice in output["chosen"]) == output["arms"]
    assert output["model"] == model
    assert output["chosen"][0]["name"].startswith("drive-")
    assert store.get(output["selection"], Selection).seed == 0


def test_a_budget_above_the_pool_is_reported(
    dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "mine", "drawn", "--budget", "500")
    assert "note: the budget pays for more than the 32 usable frames; all were chosen" in out


def test_minutes_need_a_pace(
    store: Store, dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str]
) -> None:
    output = error_of(capsys, "mine", "drawn", "--minutes", "5")
    assert "labeling time was not measured yet" in output
    assert "--seconds-per-frame" in output
    assert "embed" not in output, "arguments are checked before the pool is embedded"
    pace = ("--seconds-per-frame", "30", "--seconds-per-box", "6")
    out, _ = run(capsys, "mine", "drawn", "--minutes", "5", *pace)
    assert "expected labeling time: 5 min, at 30.0 s a frame and 6.0 s a box, given" in out
    labels = labelled(store, _control(capsys), minutes=0.5)
    assert labels
    # One box on every frame: what a frame and what a box takes cannot be told apart.
    assert "was not measured yet" in error_of(capsys, "mine", "drawn", "--minutes", "5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a selection needs a budget"),
        (("--budget", "3", "--minutes", "4"), "a selection needs a budget"),
        (("--budget", "0"), "must be ≥ 1 frame"),
        (("--budget", "3", "--like", "drive-1@99"), "Closest: drive-1@7"),
        (("--budget", "3", "--like", "drive-1@2:0,0,999,9"), "exceeds the image"),
        (("--budget", "3", "--quota", "night"), "Write CONDITION=FRAMES"),
        (("--budget", "3", "--quota", "snow=1"), "Conditions: "),
        (("--budget", "3", "--random-share", "1.5"), "--random-share"),
        (("--budget", "3", "--text", "a unicorn"), "unknown word"),
        (("--budget", "3", "--watch", "/nowhere"), "does not exist"),
        (("--budget", "3", "--model", "drawn"), "unknown checkpoint or bundle"),
    ],
)
def test_invalid_arguments_are_reported(
    dataset: Dataset,
    model: Ref,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert message in error_of(capsys, "mine", "drawn", *arguments)


def test_a_text_search_with_a_text_encoder(
    dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clip = save_model("clip", tmp_path / "clip")
    asked = ("mine", "drawn", "--budget", "5", "--encoder", str(clip), "--json")
    output = json.loads(run(capsys, *asked, "--text", "a deer on the road")[0])
    assert output["arms"] == {"mined": 5}
    assert "similar to “a deer on the road” (" in output["chosen"][0]["reasons"][1]
    other = json.loads(run(capsys, *asked, "--text", "night")[0])
    assert other["selection"] != output["selection"]
    dino = save_model("dino", tmp_path / "dino")
    asked = ("mine", "drawn", "--budget", "5", "--encoder", str(dino))
    assert "has no text tower" in error_of(capsys, *asked, "--text", "a deer")
    out, _ = run(capsys, *asked, "--like", "drive-1@2")
    assert "5 mined of 32 frames" in out


def test_from_a_cold_start_words_find_frames(
    store: Store, dataset: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ("mine", "drawn", "--budget", "3", "--text", "a deer, snowplow", "--json")
    out, err = run(capsys, *asked)
    output = json.loads(out)
    assert "no pipeline trained a model\n  with the dataset's classes" in err
    assert output["arms"] == {"mined": 3}
    first = output["chosen"][0]
    assert "may show 'a deer' around" in first["reasons"][1] or "'snowplow'" in first["reasons"][1]
    x, y, w, h = first["box"]
    assert 0 <= x < x + w <= 120 and 0 <= y < y + h <= 80
    watch = tmp_path / "watch.txt"
    watch.write_text("snowplow\ntram\n")
    out, _ = run(capsys, "mine", "drawn", "--budget", "3", "--watch", str(watch), "--json")
    assert json.loads(out)["method"] == "watch, ranked within condition"
    record = store.get(json.loads(out)["selection"], Selection)
    assert record.model is None
    assert record.parameters["query"] == {"watch": ["snowplow", "tram"]}


def test_a_fully_labelled_pool_is_reported(
    store: Store, dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str]
) -> None:
    none = datasets.save_dataset(store, dataset.role(Role.SEED), made_by="test")
    output = error_of(capsys, "mine", none, "--budget", "3", "--model", model)
    assert "no frames of role pool" in output


def _control(capsys: pytest.CaptureFixture[str]) -> Ref:
    out, _ = run(capsys, "mine", "drawn", "--budget", "8", "--control", "--json")
    return str(json.loads(out)["selection"])


def test_the_report_of_people_and_of_a_replay(
    store: Store, dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    selection = _control(capsys)
    people = labelled(store, selection, minutes=0.5)
    picture = tmp_path / "arms.png"
    asked = ("mine", "report", selection, "--rare", "class=cyclist")
    out, _ = run(capsys, *asked, "--labels", people, "-o", str(picture))
    assert out.startswith("Insufficient evidence. rare frames per labeler hour: INSUFFICIENT")
    assert "the control arm found nothing" in out
    assert "mined    8 frames in 0.07 h: 4 rare frames" in out
    assert picture.stat().st_size > 5000
    replayed = labelled(store, selection, minutes=None)
    output = json.loads(run(capsys, *asked, "--labels", replayed, "--json")[0])
    assert output["headline"].startswith("SIMULATED")
    assert output["per"] == "per 100 frames"
    assert store.get(output["report"], MiningReport).simulated
    seen = labelled(store, selection, minutes=0.5, blind=False)
    assert run(capsys, *asked, "--labels", seen)[0].startswith("NOT BLIND: labelers could tell")


def test_a_report_without_control_or_labels_says_so(
    store: Store, dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "mine", "drawn", "--budget", "8", "--json")
    plain = json.loads(out)["selection"]
    labels = labelled(store, plain, minutes=0.5)
    asked = ("mine", "report", plain, "--labels", labels, "--rare", "class=cyclist")
    assert "no control arm" in error_of(capsys, *asked)
    version = str(dataset.ref)
    output = error_of(capsys, "mine", "report", plain, "--labels", version)
    assert "no label set was merged into this dataset version" in output
    one = ("--mined-model", model)
    assert "needs two models" in error_of(capsys, *asked[:2], _control(capsys), *asked[3:], *one)
