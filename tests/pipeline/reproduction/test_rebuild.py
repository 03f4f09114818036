"""Rebuilding from lineage with real kernels: same, different, missing, failing and killed steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.pipeline.conftest import CONTRACT, write_notebook
from tests.pipeline.reproduction.runs import bare_notebook, record, record_runs, reproduce
from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import environment
from workbench.pipeline.reproduction import rebuild
from workbench.pipeline.reproduction import report as compare
from workbench.pipeline.reproduction.ancestry import trace_ancestry
from workbench.records.store import Store

DICE = "import uuid\nprint('rolled')\nn = uuid.uuid4().int % 10**6\nprint('budget', n)"


def test_every_step_is_rebuilt_to_the_same_digest(
    project: Path, workspace: Workspace, tmp_path: Path
) -> None:
    run = record_runs(workspace, project)
    (project / "notebooks/steps/a.ipynb").unlink()  # the lineage alone has to do
    status, report, text = reproduce(run.outputs["selection"], "-o", str(tmp_path / "clean"))
    assert (status, report["status"]) == (0, "reproduced"), text
    assert [(step["name"], step["status"]) for step in report["steps"]] == [
        ("a", "same"),
        ("b", "same"),
    ]
    assert report["environment"] == [] and report["leaves"] == []
    clean = Store(Workspace(tmp_path / "clean" / ".workbench"))
    assert clean.exists(run.outputs["selection"])
    with pytest.raises(ParameterError, match="finished reproduction"):
        rebuild.choose_folder(workspace, run.outputs["selection"], tmp_path / "clean")


def test_a_random_step_is_reported_with_output_and_cell(
    project: Path, workspace: Workspace
) -> None:
    steps = project / "notebooks" / "steps"
    write_notebook(steps / "a.ipynb", DICE)
    run = record_runs(workspace, project)
    status, report, text = reproduce(run.outputs["selection"])
    assert (status, report["status"]) == (3, "differs")
    difference = report["difference"]
    assert (difference["step"], difference["output"], difference["fields"]) == (
        "a",
        "selection",
        ["budget"],
    )
    assert [cell["number"] for cell in difference["cells"]] == [3]
    assert difference["cells"][0]["recorded"].startswith("budget ")
    assert [step["status"] for step in report["steps"]] == ["differs", "not-reached"]
    assert "first difference: step a, output selection" in text
    assert Path(report["folder"]).parent == workspace.root / "reproduce"


def test_changed_code_and_environment_are_reported_first(
    project: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(workspace, project / "notebooks/steps/a.ipynb")
    now = environment.current_environment()
    other = [name for name in now.distributions if not name.startswith("numpy==")]
    changed = now.model_copy(update={"distributions": ("numpy==0.1#abc", *other)})
    monkeypatch.setattr(environment, "current_environment", lambda: changed)
    monkeypatch.setattr(environment, "modules_digest", lambda _: digest.of_bytes(b"other code"))
    status, report, text = reproduce(run.outputs["selection"])
    assert status == 0
    assert len(report["environment"]) == 1
    assert report["environment"][0].endswith("here 0.1#abc")
    assert not report["steps"][0]["code_same"]
    assert text.index("numpy") < text.index("→ a")
    assert "differ from the recorded" in text


def test_a_missing_notebook_or_run_is_an_error_before_anything_runs(
    project: Path, workspace: Workspace, store: Store
) -> None:
    run = record(workspace, project / "notebooks/steps/a.ipynb")
    (store.folder(run.notebook) / "payload/notebook.ipynb").unlink()
    with pytest.raises(RecordError, match="notebook of step 'a'") as error:
        trace_ancestry(store, run.outputs["selection"])
    assert "backup" in str(error.value)
    with pytest.raises(RecordError, match="nothing to rebuild"):
        trace_ancestry(store, run.environment)
    assert not (workspace.root / "reproduce").exists()


@pytest.mark.slow
def test_a_killed_reproduction_continues(project: Path, workspace: Workspace) -> None:
    flag = project / "go"
    flag.touch()
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(flag)!r}).exists(): time.sleep(0.05)"
    write_notebook(project / "notebooks/steps/b.ipynb", wait)
    target = record_runs(workspace, project).outputs["selection"]
    flag.unlink()
    folder = rebuild.choose_folder(workspace, target, None)
    arguments = [sys.executable, "-m", "workbench", "reproduce", target]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "steps/02-b/spec.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    first = (folder / "steps/01-a/result.json").stat().st_mtime_ns
    flag.touch()
    status, report, _ = reproduce(target)
    assert (status, report["folder"]) == (0, str(folder))
    assert report["steps"][0]["seconds"] is None
    assert (folder / "steps/01-a/result.json").stat().st_mtime_ns == first
    assert rebuild.choose_folder(workspace, target, None) != folder  # this one has ended


def test_a_folder_with_other_files_is_rejected(workspace: Workspace, tmp_path: Path) -> None:
    target = "selection/" + "0" * 64
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("dear reader")
    with pytest.raises(ParameterError, match="other files"):
        rebuild.choose_folder(workspace, target, full)
    (full / rebuild._STATE_FILE).write_text("{half")
    with pytest.raises(ParameterError):
        rebuild.choose_folder(workspace, target, full)


def test_concurrent_reproductions_in_one_folder_are_rejected(
    project: Path, workspace: Workspace
) -> None:
    run = record(workspace, project / "notebooks/steps/a.ipynb")
    folder = rebuild.choose_folder(workspace, run.outputs["selection"], None)
    folder.mkdir(parents=True)
    with (
        FileLock(folder / rebuild._LOCK_FILE),
        pytest.raises(WorkbenchError, match="another process"),
    ):
        reproduce(run.outputs["selection"], "-o", str(folder))


def test_a_failed_step_is_reported_and_continues_after_the_fix(
    project: Path, workspace: Workspace
) -> None:
    beside = project / "beside.txt"
    beside.write_text("here")
    work = f"from pathlib import Path\nn = len(Path({str(beside)!r}).read_text())"
    notebook = write_notebook(project / "notebooks/steps/a.ipynb", work)
    run = record(workspace, notebook)
    beside.unlink()
    status, report, text = reproduce(run.outputs["selection"])
    assert (status, report["status"]) == (1, "failed")
    assert "FileNotFoundError" in report["steps"][0]["reason"]
    assert "a failed" in text
    beside.write_text("here")
    status, again, _ = reproduce(run.outputs["selection"])
    assert (status, again["folder"]) == (0, report["folder"])


def test_a_join_gets_all_of_its_inputs(project: Path, workspace: Workspace) -> None:
    steps = project / "notebooks" / "steps"
    first = record(workspace, steps / "a.ipynb").outputs["selection"]
    second = record(workspace, steps / "b.ipynb", upstream=first).outputs["selection"]
    many = {**CONTRACT, "inputs": {"upstream": {"kind": "selection", "many": True}}}
    join = write_notebook(
        steps / "c.ipynb", "n = 10 * len(step.input_list('upstream'))", contract=many
    )
    run = record(workspace, join, upstream=(first, second))
    status, report, _ = reproduce(run.outputs["selection"])
    assert status == 0
    assert [step["name"] for step in report["steps"]] == ["a", "b", "c"]


def test_addresses_paths_and_warnings_are_no_difference(tmp_path: Path) -> None:
    def executed(name: str, *texts: tuple[str, str]) -> Path:
        content = bare_notebook()
        content["cells"][0]["outputs"] = [
            {"output_type": "stream", "name": stream, "text": text} for stream, text in texts
        ]
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    one = executed("one", ("stdout", "<Thing at 0x7f01>\n/x/run\n"), ("stderr", "slow\n"))
    other = executed("other", ("stdout", "<Thing at 0x7fff>\n/y/run\n"))
    paths = {"/x/run": "<run>", "/y/run": "<run>"}
    assert compare.compare_notebooks(one, other, paths)[0] == ()
    assert "is gone" in compare.compare_notebooks(tmp_path / "none", other, paths)[1]
    longer = executed("longer", ("stdout", "<Thing at 0x1>\n/x/run\nmore\n"))
    cells, _ = compare.compare_notebooks(one, longer, paths)
    assert (cells[0].recorded, cells[0].rebuilt) == ("nothing", "more")


@pytest.mark.slow
def test_the_tiny_loop_is_rebuilt_to_the_same_digests(tiny_run: Any, tmp_path: Path) -> None:
    from tests.tiny_run import workbench

    release = tiny_run.output("release.release")
    done = workbench(
        tiny_run.workspace,
        "reproduce",
        release,
        "-o",
        str(tmp_path / "clean"),
        "--json",
        timeout=900,
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["status"]) == (0, "reproduced"), done.stderr
    rebuilt = {step["name"]: step["how"] for step in report["steps"]}
    assert rebuilt == {
        "ingest": "rebuilt",
        "baseline": "rebuilt",
        "collect": "merged",
        "inspect": "rebuilt",
        "retrain": "rebuilt",
        "export": "rebuilt",
        "validate": "rebuilt",
    }
    assert not (tmp_path / "clean/.workbench/services").exists()  # no server was started
