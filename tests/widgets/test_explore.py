"""`wb.open().browse`: the frame browser with everything connected to records and models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.curation.conftest import make_checkpoint, make_dataset
from tests.widgets.test_browser import Page
from workbench import api
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.records import dataset as datasets
from workbench.records.store import Store
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


@pytest.mark.parametrize("name", ["first_exploration", "why_missed", "compare_models"])
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
    body = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in body["cells"]:
        if cell["cell_type"] != "code":
            continue
        if "parameters" in cell["metadata"].get("tags", ()):
            exec("".join(cell["source"]) + "\n" + given, names)  # noqa: S102 - our own notebook
        else:
            exec("".join(cell["source"]), names)  # noqa: S102
    assert isinstance(names["browser"], FrameBrowser)
    assert {one.role for one in names["browser"].frames} == {"safety"}
