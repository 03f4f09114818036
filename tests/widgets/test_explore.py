"""`wb.open().browse`: the frame browser with everything connected to records and models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.curation.conftest import make_checkpoint, make_dataset
from tests.widgets.test_browser import Page
from workbench import api, curation, labeling
from workbench.core.errors import ParameterError, RecordError
from workbench.core.workspace import Workspace
from workbench.data.incidents import list_incidents
from workbench.labeling.answers import AnswerRow
from workbench.records import dataset as datasets
from workbench.records.frames import Box, Label, Origin
from workbench.records.store import Store
from workbench.records.types import LabelSet
from workbench.widgets import FrameBrowser

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks" / "explore"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[api.Workbench, FrameBrowser]:
    folder = tmp_path_factory.mktemp("explore")
    workspace = Workspace(folder / ".workbench")
    store = Store(workspace)
    ref = datasets.save_dataset(store, make_dataset(workspace), made_by="test")
    models = [make_checkpoint(store, ref, folder / "weights", seed=seed) for seed in (0, 1)]
    ws = wb.open(folder)
    return ws, ws.browse("drawn", *models)


def test_every_frame_is_there_with_labels_boxes_and_a_place_on_the_map(
    opened: tuple[api.Workbench, FrameBrowser],
) -> None:
    ws, browser = opened
    dataset = ws.dataset("drawn")
    assert [one.frame for one in browser.frames] == [frame.id for frame in dataset.frames]
    content, _ = Page(browser).ask(type="ready")
    assert len(content["models"]) == 2 and content["has_labels"]
    assert "points" in content["buffers"] and content["can_search"] and content["can_explain"]
    assert {one["slice"] for one in content["comparison"]} >= {"all"}
    assert {one["name"] for one in content["actions"]} == {
        "Tag in FiftyOne",
        "Send to labelers",
        "Keep as a selection",
        "Mine more like these",
        "Add to incidents",
        "Open in FiftyOne",
    }


def test_marked_frames_become_a_selection(
    opened: tuple[api.Workbench, FrameBrowser],
) -> None:
    _, browser = opened
    browser.mark([browser.frames[5].frame, browser.frames[2].frame])
    made = browser.selection("odd at night")
    assert isinstance(made, api.Selection)
    assert made.frames == (browser.frames[5].frame, browser.frames[2].frame)
    assert made.record.chosen[0].reasons == ("odd at night",)


def test_misses_are_explained_with_the_nearest_training_objects(
    opened: tuple[api.Workbench, FrameBrowser],
) -> None:
    _, browser = opened
    row = next(n for n, one in enumerate(browser.frames) if one.role == "safety")
    page = Page(browser)
    content, _ = page.ask(type="why", frame=row, model=1, score=0.99)
    assert list(content["misses"]) == [0], "an untrained model finds nothing at 0.99"
    assert "found" in content["misses"][0] or "no box near it" in content["misses"][0]
    content, _ = page.ask(type="nearest", frame=row, label=0)
    count, *alike = content["lines"]
    assert count == "training has 4 of class car"
    assert len(alike) == 1 and "alike: " in alike[0], "one of each drive"
    assert alike[0].endswith("by unknown, drive-0"), "the only drive to learn from"


def test_searching_and_mining_from_marks(
    opened: tuple[api.Workbench, FrameBrowser],
) -> None:
    _, browser = opened
    page = Page(browser)
    content, _ = page.ask(type="like", frame=10, box=[20, 10, 60, 50], cls="")
    assert content["type"] == "like" and content["frames"] and 10 not in content["frames"]
    content, _ = page.ask(type="refine", yes=content["frames"][:1], no=content["frames"][1:2])
    assert content["frames"]
    pool = next(n for n, one in enumerate(browser.frames) if one.role == "pool")
    content, _ = page.ask(type="act", action="Mine more like these", frames=[pool])
    assert "mined: selection/" in content["text"]
    content, _ = page.ask(type="act", action="Mine more like these", frames=[0])
    assert content["error"] and "not in the pool" in content["text"]


def test_what_a_model_misses_on_marked_frames_becomes_an_incident(
    opened: tuple[api.Workbench, FrameBrowser],
) -> None:
    ws, browser = opened
    row = next(n for n, one in enumerate(browser.frames) if one.role == "safety")
    model = next(box.model for box in browser.frames[row].boxes if box.score is not None)
    answers = {"name": "unseen", "why": "found nothing", "model": model, "score": 0.99}
    page = Page(browser)
    content, _ = page.ask(type="act", action="Add to incidents", frames=[row], answers=answers)
    assert content["text"] == "unseen: 1 object; every candidate has to find them now"
    [state] = list_incidents(ws.store)
    assert state.record is not None and state.record.frames == (browser.frames[row].frame,)
    pool = next(n for n, one in enumerate(browser.frames) if one.role == "pool")
    content, _ = page.ask(type="act", action="Add to incidents", frames=[pool], answers=answers)
    assert content["error"] and "misses nothing on 1 marked frame at 0.99" in content["text"]
    content, _ = page.ask(
        type="act", action="Add to incidents", frames=[row], answers={**answers, "why": " "}
    )
    assert content["error"] and content["text"] == "no why given"


def test_a_part_of_a_version_is_refused(opened: tuple[api.Workbench, FrameBrowser]) -> None:
    ws, _ = opened
    with pytest.raises(ParameterError, match="whole dataset version"):
        ws.browse(ws.dataset("drawn").role("safety"))


def test_without_a_model_there_are_labels_only(
    opened: tuple[api.Workbench, FrameBrowser],
) -> None:
    ws, _ = opened
    browser = ws.browse("drawn", roles=["safety"])
    content, _ = Page(browser).ask(type="ready")
    assert content["models"] == [] and content["n"] == 8 and not content["can_search"]


def two_labelers(ws: api.Workbench) -> str:
    """A label set: Bob lacks Ada's only box on the second of two frames."""
    frames = ws.dataset("drawn").role("pool").frames[:3]
    chosen = curation.select_manually(
        ws.store, ws.dataset("drawn").ref, [f.id for f in frames], "x"
    )
    batch = labeling.make_batch(ws.store, ws.dataset("drawn").ref, chosen, None, ())
    box = Box(x=5, y=5, w=30, h=20)
    drawn = [(0, "ada"), (0, "bob"), (1, "ada")]
    labels = [
        Label(frame=frames[at].id, cls="car", box=box, origin=Origin.HUMAN, annotator=who)
        for at, who in drawn
    ]
    rows = [
        AnswerRow(frame=frames[at].id, annotator=who, boxes=1)
        for at, who in [*drawn, (1, "bob"), (2, "ada")]
    ]
    record = LabelSet(batch=batch, annotators=(), labels=len(labels))
    payload = {
        "labels.jsonl": datasets.to_json_lines(labels),
        "answers.jsonl": datasets.to_json_lines(rows),
    }
    return ws.store.put(record, payload)


def test_what_labelers_disagree_on_is_shown_first(
    opened: tuple[api.Workbench, FrameBrowser], tmp_path: Path
) -> None:
    ws, _ = opened
    browser = ws.browse_answers(two_labelers(ws))
    first, second = browser.frames  # the third frame has one answer
    assert first.reasons == ("a car drawn by 1 of 2",) and not second.reasons
    assert [(box.origin, box.score, box.model) for box in second.boxes] == [
        ("ada", None, ""),
        ("", 1.0, "bob"),
    ]
    with pytest.raises(RecordError, match="is a checkpoint, not a label"):
        ws.browse_answers(next(ws.store.refs("checkpoint")))
    (tmp_path / ".workbench" / "records").mkdir(parents=True)
    with pytest.raises(ParameterError, match="nothing was collected"):
        wb.open(tmp_path).browse_answers()


@pytest.mark.parametrize(
    "name",
    [
        "first_exploration",
        "why_missed",
        "compare_models",
        "int8_by_slice",
        "what_changed",
        "disagreements",
    ],
)
def test_the_notebooks_run_from_question_to_answer(
    opened: tuple[api.Workbench, FrameBrowser],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ws, _ = opened
    first, second = list(ws.store.refs("checkpoint"))[:2]
    monkeypatch.setenv("WORKBENCH_HOME", str(ws.workspace.root))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    given = f"dataset = 'drawn'\nmodel = first = {first!r}\nsecond = {second!r}\nrole = 'safety'\n"
    roles = {"safety"}
    if name == "what_changed":
        whole = ws.dataset("drawn")
        frames = whole.frames[1:]
        labels = [one for one in whole.labels if one.frame != whole.frames[0].id][:-3]
        fewer = replace(whole, labels=tuple(labels), frames=frames, ref=None)
        made = datasets.save_dataset(ws.store, fewer, made_by="test")
        given = f"first, second = {made!r}, {whole.ref!r}\n"
        roles = {"safety", "seed"}
    elif name == "disagreements":
        given = f"labels = {two_labelers(ws)!r}\n"
        roles = {"pool"}
    body = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in body["cells"]:
        if cell["cell_type"] != "code":
            continue
        if "parameters" in cell["metadata"].get("tags", ()):
            exec("".join(cell["source"]) + "\n" + given, names)  # noqa: S102 - our own notebook
        else:
            exec("".join(cell["source"]), names)  # noqa: S102
    browser = names["browser"]
    assert isinstance(browser, FrameBrowser)
    shown = {one.frame: one.role for one in browser.frames}
    if name == "what_changed":
        assert "labels: 4 added, 0 removed" in capsys.readouterr().out
        assert {shown[one] for one in browser.picked} == roles
    else:
        assert set(shown.values()) == roles
    if name == "disagreements":
        assert "2 frames with two answers, 1 disputed" in capsys.readouterr().out
