"""The notebooks that look for leaks and for more of the same, run by their kernel as people do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.curation.conftest import make_checkpoint, make_dataset
from workbench.core.workspace import Workspace
from workbench.curation import hygiene
from workbench.records import dataset
from workbench.records.store import Store
from workbench.records.types import Selection

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks" / "explore"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with a small pool, and a model that was not trained."""
    folder = tmp_path_factory.mktemp("explore-hygiene")
    made = Workspace(folder / ".workbench")
    store = Store(made)
    ref = dataset.save_dataset(store, make_dataset(made), made_by="test")
    make_checkpoint(store, ref, folder / "weights")
    before = os.environ.get("WORKBENCH_HOME")
    os.environ["WORKBENCH_HOME"] = str(made.root)
    try:
        yield made
    finally:
        os.environ.pop("WORKBENCH_HOME")
        if before is not None:
            os.environ["WORKBENCH_HOME"] = before


def executed(name: str, monkeypatch: pytest.MonkeyPatch, *extra: str) -> Any:
    """The notebook with all its cells run, and ``extra`` cells after the last."""
    path = NOTEBOOKS / f"{name}.ipynb"
    monkeypatch.setenv("WORKBENCH_NOTEBOOK", str(path))
    notebook = nbformat.read(path, 4)
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in extra]
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return notebook


def printed(notebook: Any, number: int) -> str:
    outputs = notebook.cells[number].outputs
    return "".join(one.text for one in outputs if one.output_type == "stream")


def pictures(notebook: Any) -> list[str]:
    return [
        cell.id
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]


def test_are_my_splits_leaking(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed("leaking_splits", monkeypatch, "print(inspection)")
    # Nothing leaks and no label is wrong here: figures that would be empty are left out.
    assert set(pictures(notebook)) == {"over_time", "across", "coverage"}
    found = hygiene.read_findings(Store(workspace), printed(notebook, -1).strip())
    assert len(found.record.gates) == 4
    gates = next(n for n, cell in enumerate(notebook.cells) if cell.id == "gates")
    assert "leaks between roles: PASS" in printed(notebook, gates)


def test_more_like_this(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search from code, as the page asks for it, and what is kept is a selection."""
    act = (
        "sent = []\n"
        "browser.send = lambda content, buffers=(): sent.append(content)\n"
        "ask = {'type': 'like', 'frame': 7, 'box': None, 'cls': ''}\n"
        "browser._handle_custom_msg(ask, [])\n"
        "whole = [browser.frames[row].frame for row in sent[-1]['frames']]\n"
        "browser.mark([seen.frames[7], *whole])\n"
        "message = browser.act('Keep as a selection')\n"
        "print(seen.frames[7], *whole, '|', message)"
    )
    notebook = executed("more_like_this", monkeypatch, act)
    assert "pictures" in pictures(notebook)
    frames, message = printed(notebook, -1).split("|")
    exemplar, *whole = frames.split()
    assert whole
    assert exemplar not in whole
    assert "kept as selection/" in message
    store = Store(workspace)
    kept = [store.get(ref, Selection) for ref in store.refs(Selection.KIND)]
    assert any(one.chosen[0].frame == exemplar for one in kept)
