"""A run in a notebook, driven as code does: shown, followed to its end, cancelled, not started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from docs import screenshots
from tests.pipeline.test_runs import RUNNER, save
from workbench import services, widgets
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace
from workbench.pipeline import runs
from workbench.widgets.run_progress import RunProgress, _parameter_options, _RunProcess

RUN = "20260101-000000-aaaa"


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A widget that looks for servers finds none."""
    monkeypatch.setattr(services, "status", lambda *_: {})


@pytest.fixture
def started(workspace: Workspace) -> Iterator[_RunProcess]:
    """A runner's process, as `widgets.run` starts one."""
    command = [sys.executable, "-c", RUNNER, str(workspace.root), RUN, "polite"]
    one = _RunProcess(command, Path.cwd(), workspace)
    yield one
    one.process.kill()
    one.process.wait()


def until(condition: object, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.05)
    assert condition()  # type: ignore[operator]


def test_a_finished_run_is_shown_and_not_watched(workspace: Workspace) -> None:
    steps = (
        {"name": "a<b", "status": "ran", "seconds": 2.0, "reason": "never run before"},
        {"name": "b", "status": "failed", "seconds": 1.0, "reason": "KeyError: '<gone>'"},
        {"name": "c", "status": "not-reached"},
    )
    save(workspace, RUN, status="failed", steps=steps)
    shown = RunProgress(RUN[:8], workspace=workspace)
    rows = [row.children for row in shown.steps.children]
    assert [bar.value for _, bar, _ in rows] == [100, 100, 0]
    assert [bar.bar_style for _, bar, _ in rows] == ["success", "danger", ""]
    assert "a&lt;b" in rows[0][0].value
    assert "never run before" in rows[0][2].value
    assert "&lt;gone&gt;" in rows[1][2].value
    assert "failed" in shown.heading.value
    assert shown.cancel_button.layout.display == "none"
    assert f"workbench logs {RUN}" in shown.closing.value
    assert "resumes it" in shown.closing.value
    assert shown.wait(1) == runs.find_run(workspace, RUN)


def test_a_started_run_is_found_followed_and_cancelled(
    workspace: Workspace, started: _RunProcess
) -> None:
    shown = RunProgress.of(started, workspace)
    until(lambda: shown.steps.children)
    assert shown.state is not None
    assert shown.state.run_id == RUN
    folder = workspace.runs / RUN / "a"
    (folder / "progress.json").write_text('{"done": 3, "total": 4}')
    name, bar, text = shown.steps.children[0].children
    until(lambda: bar.value == 75)
    assert "3 of 4" in text.value
    assert "→" in name.value
    again = RunProgress(workspace=workspace)  # as after a restart of the kernel
    assert again.state is not None
    assert again.state.run_id == RUN
    again.cancel_button.click()
    assert again.cancel_button.disabled
    for one in (shown, again):
        ended = one.wait(20)
        assert ended is not None
        assert ended.state == "cancelled"
        assert "cancelled" in one.heading.value


def test_a_killed_run_is_shown(workspace: Workspace, started: _RunProcess) -> None:
    shown = RunProgress.of(started, workspace)
    until(lambda: shown.steps.children)
    started.process.kill()
    ended = shown.wait(20)
    assert ended is not None
    assert ended.state == "killed"
    name, _, text = shown.steps.children[0].children
    assert "✗" in name.value
    assert "killed" in text.value


def test_the_error_of_a_run_that_cannot_start_is_shown(
    workspace: Workspace, tmp_path: Path
) -> None:
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("name: 1\nsteps: []\n")
    shown = widgets.run(pipeline, workspace=workspace, word="x")
    assert shown.wait(60) is None
    assert "did not start" in shown.heading.value
    assert "p.yaml" in shown.closing.value
    assert shown.cancel_button.disabled


def test_without_runs_there_is_an_error(workspace: Workspace) -> None:
    with pytest.raises(RecordError, match="no runs yet"):
        RunProgress(workspace=workspace)


def test_parameters_become_command_line_options() -> None:
    given = {"n": 3, "fast": True, "word": "a b", "names": ["x"], "at": Path("/d"), "none": None}
    output = ["n=3", "fast=true", "word=a b", 'names=["x"]', "at=/d", "none=null"]
    assert _parameter_options(given) == [word for text in output for word in ("-p", text)]


@pytest.mark.browser
@pytest.mark.skipif(screenshots.chromium() is None, reason="needs Chromium")
def test_in_jupyterlab_a_click_stops_the_run(workspace: Workspace, tmp_path: Path) -> None:
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(workspace.root), RUN, "polite"])
    notebook = tmp_path / "watch.ipynb"
    code = "from workbench import widgets\nwidgets.RunProgress()"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = new_notebook(cells=[new_code_cell(code)], metadata={"kernelspec": kernel})
    nbformat.write(content, notebook)
    try:
        until((workspace.runs / RUN / "run.json").exists)
        with (
            screenshots.lab(workspace, notebook, servers=()) as address,
            screenshots.browser() as page,
        ):
            screenshots.run_all_cells(page, address, shown="Cancel")
            page.get_by_text("→ running").wait_for(timeout=30_000)
            page.get_by_role("button", name="Cancel").click()
            page.get_by_text("■ cancelled").wait_for(timeout=30_000)
            page.get_by_text(f"workbench logs {RUN}").wait_for()
        runner.wait(10)
    finally:
        runner.kill()
        runner.wait()
