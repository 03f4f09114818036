"""How a run is shown on a terminal and elsewhere."""

from __future__ import annotations

import time

import pytest

from workbench.cli.runs import TerminalDisplay
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import run as running
from workbench.pipeline.execution import StepReport
from workbench.pipeline.runs import RunState, StepState, earlier_durations, save_run

NEEDS = {"ingest": (), "train": ("ingest",), "inspect": ("ingest",), "judge": ("train", "inspect")}


def ended(name: str, status: str = "ran") -> StepReport:
    return StepReport.model_validate({"name": name, "status": status, "seconds": 2.0})


def test_time_left_is_the_longest_way_through_what_has_not_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = TerminalDisplay(NEEDS, {"ingest": 10, "train": 60, "inspect": 5, "judge": 20})
    assert display.seconds_left() == 90
    display.step_started("ingest", ("never run before",))
    now[0] += 4
    assert display.seconds_left() == 86
    display.step_ended(ended("ingest"))
    assert display.seconds_left() == 80
    display.step_ended(ended("train", "skipped"))
    assert display.seconds_left() == 25
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  → 1/4 ingest   never run before (last time 10.0 s)"
    assert lines[1].startswith("  ✓ 1/4 ingest") and lines[1].endswith("about 1 min 20 s left")
    assert "left" not in lines[2]


def test_no_time_is_promised_for_a_step_that_never_ran(capsys: pytest.CaptureFixture[str]) -> None:
    display = TerminalDisplay(NEEDS, {"ingest": 10, "train": 60})
    display.step_started("train", ("never run before",))
    display.step_ended(ended("ingest"))
    assert display.seconds_left() is None
    assert "left" not in capsys.readouterr().err


def test_earlier_durations_are_of_the_newest_run_that_ran_the_step(workspace: Workspace) -> None:
    for number, steps in enumerate(
        [(("a", "ran", 9.0), ("b", "ran", 7.0)), (("a", "ran", 3.0), ("b", "skipped", 0.0))]
    ):
        states = tuple(StepState(name=n, status=s, seconds=t) for n, s, t in steps)
        run_id = f"20260101-00000{number}-aaaa"
        save_run(workspace, RunState(run_id=run_id, pipeline="p", status="succeeded", steps=states))
    assert earlier_durations(workspace, "p") == {"a": 3.0, "b": 7.0}
    assert earlier_durations(workspace, "another") == {}


def test_a_full_disk_is_said_before_a_step_starts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 2**28})
    monkeypatch.setattr(running.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WorkbenchError, match=r"nearly full: 0\.2 GiB are free, a run needs 1"):
        running._check_disk(workspace)
