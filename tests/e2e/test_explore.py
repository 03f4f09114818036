"""The places to explore, in a real browser: the long-tail notebook and the board."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import screenshots
from tests.curation.conftest import make_checkpoint, make_dataset
from workbench import curation, services
from workbench.core.workspace import Workspace
from workbench.pipeline.runs import RunState, StepState, save_run
from workbench.records import dataset
from workbench.records.base import GateReport, GateResult, Verdict
from workbench.records.model_types import Environment, NotebookSource, StepRun
from workbench.records.store import Store

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        screenshots.chromium() is None,
        reason="needs Chromium: install Debian's `chromium` package",
    ),
]


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with a mined pool, a gate report, and mongod up."""
    folder = tmp_path_factory.mktemp("explore")
    workspace = Workspace(folder / ".workbench")
    store = Store(workspace)
    ref = dataset.save_dataset(store, make_dataset(workspace), made_by="test")
    model = make_checkpoint(store, ref, folder / "weights")
    curation.mine(store, ref, model, 10)
    gate = GateResult(
        name="night-recall",
        verdict=Verdict.FAIL,
        n=12,
        unit="drives",
        value=0.41,
        bound=0.5,
        method="bootstrap",
        slice="night",
    )
    report = GateReport(
        candidate="bundle/" + "1" * 64,
        reference=None,
        dataset=ref,
        rules="2" * 64,
        verdict=Verdict.FAIL,
        gates=(gate,),
        simulated=True,
    )
    gates = store.put(report, {"metrics.json": b"{}"})
    # The board shows what steps made.
    store.put(
        StepRun(
            step="validate",
            key="3" * 64,
            notebook=store.put(NotebookSource(name="validate.ipynb", code="4" * 64)),
            environment=store.put(Environment(python="3", distributions=(), machine={})),
            modules="5" * 64,
            parameters={},
            inputs={},
            outputs={"gates": gates},
        )
    )
    run = RunState(
        run_id="20260101-120000-abcd",
        pipeline="data-engine",
        pipeline_file=str(screenshots.PROJECT / "pipelines" / "data_engine.yaml"),
        started_at="2026-01-01T12:00:00+00:00",
        ended_at="2026-01-01T12:05:00+00:00",
        status="failed",
        steps=(
            StepState(name="ingest", status="ran", seconds=12.0),
            StepState(name="baseline", status="failed", seconds=3.0, reason="<b>no frames</b>"),
        ),
    )
    save_run(workspace, run)
    before = {name: os.environ.pop(name) for name in list(os.environ) if "FIFTYONE_" in name}
    try:
        services.up(workspace, ("mongod",))
        yield workspace
    finally:
        services.down(workspace)
        os.environ.update(before)


def test_a_click_in_the_notebook_tags_frames_in_fiftyone(explored: Workspace) -> None:
    with screenshots.lab(explored) as address, screenshots.browser() as page:
        screenshots.run_all_cells(page, address)
        page.get_by_role("button", name="mark all shown").click()
        page.get_by_role("button", name="Tag in FiftyOne").click()
        page.get_by_role("button", name="Yes, 10 frames").click()
        page.get_by_text("10 frames tagged 'look-again' in FiftyOne").wait_for(timeout=60_000)
        assert page.locator(".wb-card").count() >= 8
    # Asked in a process of its own: FiftyOne attaches to one database for good.
    ask = (
        "from workbench import curation\nprint(len(curation.tagged_frames('drawn', 'look-again')))"
    )
    variables = {**os.environ, **services.environment(explored, ("mongod",))}
    told = subprocess.run(
        [sys.executable, "-c", ask], env=variables, capture_output=True, text=True, check=True
    )
    assert told.stdout.split()[-1] == "10"


def test_the_board_shows_gates_and_coverage(explored: Workspace) -> None:
    with screenshots.board(explored) as address, screenshots.browser() as page:
        page.goto(address)
        page.get_by_role("heading", name="Gates: FAIL").wait_for(timeout=60_000)
        page.get_by_text("The judged drives are simulated").wait_for()
        page.get_by_text("night-recall").first.wait_for()
        page.get_by_role("heading", name="Coverage").wait_for()
        page.get_by_text("cyclist").first.wait_for()
        page.get_by_role("heading", name="Runs").wait_for()
        # The newest run: its graph, where it failed, and what runs it again.
        graph = page.locator("marimo-mermaid")
        graph.get_by_text("failed · 3 s").wait_for()
        assert graph.locator("path.flowchart-link").count() == 1, "ingest before baseline"
        page.get_by_text("<b>no frames</b>").first.wait_for()
        page.get_by_text("--from baseline").wait_for()
        page.get_by_label("judged model").wait_for()


def test_the_board_of_an_empty_workspace_says_what_to_run(
    explored: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Workspace(tmp_path / ".workbench")
    monkeypatch.setattr(services, "environment", lambda *_: {})
    with screenshots.board(empty) as address, screenshots.browser() as page:
        page.goto(address)
        page.get_by_text("No model was judged yet").wait_for(timeout=60_000)
        page.get_by_text("There is no dataset yet").wait_for()


def test_the_board_asks_for_its_token(explored: Workspace) -> None:
    with screenshots.board(explored) as address, screenshots.browser() as page:
        page.goto(address.split("?")[0])
        page.wait_for_timeout(1500)
        assert page.get_by_text("Gates").count() == 0
