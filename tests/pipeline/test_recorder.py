"""The record of a run in MLflow, read back from a real server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.release.conftest import CHECKPOINT, DATASET, FILES, METRICS, RULES, gate
from workbench import services
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.pipeline import environment, recorder
from workbench.pipeline.recorder import PAGE_FILE, TRACKED_MARK, RunRecorder, StepStart
from workbench.records.base import GateReport, Ref, Verdict, digest_of
from workbench.records.model_types import ExportBundle, NotebookSource, StepRun
from workbench.records.store import Store
from workbench.records.types import Selection
from workbench.release.publishing import publish_release
from workbench.tracking import MetricPoint, Tracker

TAGS = {"workbench.pipeline": "trial", "workbench.run": "r1", "workbench.workspace": "w"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow of this module's own."""
    workspace = Workspace(tmp_path_factory.mktemp("mlflow") / ".workbench")
    try:
        services.up(workspace, ("mlflow",))
        yield services.tracking_address(workspace)
    finally:
        services.down(workspace)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a lock and a change that holds a secret."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "requirements.lock").write_text("numpy==2.4.6\n")
    (folder / "a.py").write_text("x = 1\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(folder)]
    for arguments in (["init", "-q", "-b", "trunk"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], check=True)
    (folder / "a.py").write_text("x = 'open sesame'\n")
    return folder


def record_step(store: Store, step: str, inputs: dict[str, Any], budget: int) -> tuple[Ref, Ref]:
    """A selection and the record of the step that made it."""
    chosen = store.put(
        Selection(dataset="dataset/" + "0" * 64, budget=budget, seed=0, method="m", chosen=())
    )
    run = StepRun(
        step=step,
        key=f"{budget:064x}",
        notebook=store.put(NotebookSource(name="a.ipynb", code="1" * 64)),
        environment=store.put(environment.current_environment()),
        modules="2" * 64,
        parameters={},
        inputs=inputs,
        outputs={"selection": chosen},
    )
    return chosen, store.put(run)


def step_start(folder: Path, step: str, inputs: dict[str, Any] | None = None) -> StepStart:
    """A finished step with its folder."""
    step_folder = folder / step
    step_folder.mkdir()
    output = new_output("stream", name="stdout", text="said <this>")
    page = new_notebook(cells=[new_code_cell("print('said <this>')", outputs=[output])])
    nbformat.write(page, step_folder / "executed.ipynb")
    used = {"status": 0, "seconds": 2.5, "peak_memory_mib": 90.5, "cpu_seconds": 1.5}
    (step_folder / "result.json").write_text(
        json.dumps({"schema_version": 1, **used, "outputs": {}})
    )
    return StepStart(step, {"n": 1}, inputs or {}, {"workbench.notebook": "a.ipynb"}, step_folder)


def artifacts(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    return {one.path for one in client.list_artifacts(run_id, folder)}


def write(recorder: RunRecorder, steps: list[tuple[StepStart, Ref | None]]) -> None:
    recorder.start("trial r1", {"n": 1})
    for step, run in steps:
        recorder.step_started(step)
        recorder.step_ended(step, "FINISHED" if run else "FAILED", {"workbench.failure": "x"}, run)
    recorder.end("FINISHED", {})
    assert recorder.close() is None


def test_a_run_records_its_source_inputs_and_outputs(
    uri: str, store: Store, project: Path, tmp_path: Path
) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    tracker = Tracker(uri, "lineage")
    first, first_run = record_step(store, "a", {}, 1)
    second, second_run = record_step(store, "b", {"one": first}, 2)
    _, third_run = record_step(store, "c", {"all": (first, second)}, 3)
    steps: list[tuple[StepStart, Ref | None]] = [
        (step_start(tmp_path, "a"), first_run),
        (step_start(tmp_path, "b", {"one": first}), second_run),
    ]
    recorder = RunRecorder(
        lambda: tracker, store, TAGS, project=project, secrets={"DOOR": "open sesame"}
    )
    write(recorder, steps)
    ids = [store.side(run, TRACKED_MARK)["run"] for run in (first_run, second_run)]
    child = client.get_run(ids[1])
    parent = client.get_run(child.data.tags["mlflow.parentRunId"])
    shown = json.loads((store.workspace.runs / "r1" / "mlflow.json").read_bytes())["url"]
    assert shown.startswith(f"http://{uri.rpartition('@')[2]}/")  # without the password
    assert shown.partition("?")[0].endswith(parent.info.run_id)

    given = [one for one in child.inputs.dataset_inputs if one.tags[0].value == "input"]
    assert [one.dataset.digest for one in given] == [first.split("/")[1][:36]]
    assert json.loads(given[0].dataset.source) == {"ref": first, "run_id": ids[0]}
    assert child.data.tags["workbench.input.one.run"] == ids[0]
    assert child.data.tags["workbench.output.selection"] == second
    assert child.data.tags["workbench.record"] == second_run

    assert artifacts(client, ids[1]) == {"executed.ipynb", PAGE_FILE, "result.json"}
    assert artifacts(client, parent.info.run_id, "source") == {"source/changes.patch"}
    assert artifacts(client, parent.info.run_id, "environment") == {"environment/requirements.lock"}
    patch = Path(
        mlflow.artifacts.download_artifacts(
            run_id=parent.info.run_id, artifact_path="source/changes.patch", tracking_uri=uri
        )
    ).read_text()
    assert "-x = 1" in patch
    assert "sesame" not in patch
    for run in (parent, child):
        assert run.data.tags["mlflow.source.git.branch"] == "trunk"
        assert run.data.tags["workbench.git.dirty"] == "true"
        assert len(run.data.tags["workbench.lock"]) == 64
    resources = ("seconds", "peak_memory_mib", "cpu_seconds")
    assert [child.data.metrics[f"resources.{name}"] for name in resources] == [2.5, 90.5, 1.5]

    # A later run, which skipped the first two: the index of records says who made its inputs.
    joined = step_start(tmp_path, "c", {"all": (first, second)})
    write(RunRecorder(lambda: tracker, store, TAGS, project=tmp_path), [(joined, third_run)])
    later = client.get_run(store.side(third_run, TRACKED_MARK)["run"])
    names = {one.dataset.name for one in later.inputs.dataset_inputs}
    assert {"all[0] (selection)", "all[1] (selection)"} <= names
    assert [later.data.tags[f"workbench.input.all.{at}.run"] for at in (0, 1)] == ids
    assert "mlflow.source.git.commit" not in later.data.tags


def test_a_notebook_that_cannot_be_rendered_does_not_fail_the_run(
    uri: str, store: Store, tmp_path: Path
) -> None:
    import mlflow

    step = step_start(tmp_path, "a")
    (step.folder / "executed.ipynb").write_text("rubbish")
    _, run = record_step(store, "a", {}, 1)
    write(
        RunRecorder(lambda: Tracker(uri, "rubbish"), store, TAGS, project=tmp_path), [(step, run)]
    )
    client = mlflow.MlflowClient(tracking_uri=uri)
    mlflow_run = client.get_run(store.side(run, TRACKED_MARK)["run"])
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.tags["workbench.page"].startswith("could not be rendered")
    assert artifacts(client, mlflow_run.info.run_id) == {"executed.ipynb", "result.json"}


def test_a_page_shows_all_outputs_and_runs_no_script(tmp_path: Path) -> None:
    stream = new_output("stream", name="stdout", text="a <b> & c")
    evil = new_output("display_data", data={"text/html": "<script>alert(1)</script><i>shown</i>"})
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "Slider()"}
    script = {"application/javascript": "alert(2)", "text/plain": "nothing"}
    widget, run = new_output("display_data", data=view), new_output("display_data", data=script)
    error = new_output("error", ename="KeyError", evalue="'gone'", traceback=["Traceback …"])
    cells = [
        new_markdown_cell("# Curate"),
        new_code_cell("x = 1", outputs=[stream, evil, widget, run, error]),
    ]
    notebook, page = tmp_path / "executed.ipynb", tmp_path / "out" / "page.html"
    nbformat.write(new_notebook(cells=cells), notebook)
    recorder.render_notebook(notebook, page, caption="trial <r1>")
    text = page.read_text()
    for part in ("Curate", "a &lt;b&gt; &amp; c", "shown", "Slider()", "Traceback", "&lt;r1&gt;"):
        assert part in text
    assert "alert(2)" not in text
    # What a notebook's own HTML brings is kept, and the page's policy keeps it from running.
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert "https://" not in text


def test_consecutive_stream_outputs_are_joined(tmp_path: Path) -> None:
    names = ("stdout", "stdout", "stderr", "stdout")
    said = [new_output("stream", name=name, text=f"line {n}\n") for n, name in enumerate(names)]
    notebook, page = tmp_path / "executed.ipynb", tmp_path / "page.html"
    nbformat.write(new_notebook(cells=[new_code_cell("x", outputs=said)]), notebook)
    recorder.render_notebook(notebook, page)
    assert page.read_text().count('class="output_area"') == 3
    assert "line 0\nline 1" in page.read_text()


def test_an_invalid_notebook_is_an_error_and_writes_no_page(tmp_path: Path) -> None:
    notebook = tmp_path / "executed.ipynb"
    notebook.write_text("rubbish")
    with pytest.raises(ValueError, match=r"(?i)json"):
        recorder.render_notebook(notebook, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_release_is_registered_as_its_record_says(
    uri: str, store: Store, project: Path, tmp_path: Path
) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    tags = {
        "workbench.pipeline": "trial",
        "workbench.run": "r9",
        "workbench.workspace": str(store.workspace.root),
    }
    model = "recorded-camera"
    for number, verdict in enumerate((Verdict.PASS, Verdict.FAIL), start=1):
        bundle = store.put(
            ExportBundle(
                checkpoint=CHECKPOINT, calibration=DATASET, classes=(str(number),), parity={}
            ),
            FILES,
        )
        gates = GateReport(
            candidate=bundle,
            reference=None,
            dataset=DATASET,
            rules=digest.of_json(RULES),
            verdict=verdict,
            gates=(gate(verdict),),
        )
        case = publish_release(store, bundle, store.put(gates, METRICS), model)
        if number == 1:
            continue  # the first release never reached MLflow, as with a lost database
        step = step_start(tmp_path, "release")
        recorder = RunRecorder(lambda: Tracker(uri, "trial"), store, tags, project=project)
        recorder.start("trial r9", {})
        recorder.step_started(step)
        notes = {"workbench.digest": digest_of(bundle)}
        recorder.register(step.step, case.ref, case.folder, notes, "**FAIL**")
        points = [MetricPoint("ap50", 0.25, 0, 0.0)]
        status = {"workbench.status": "refused"}
        recorder.end("FINISHED", status, name="trial REFUSED", description="* why", points=points)
        assert recorder.close() is None
        assert [p for p in recorder.problems if "lacks recorded-camera@1" in p]
    (version,) = client.search_model_versions(f"name = '{model}'")
    assert int(version.version) == 2
    assert version.tags["workbench.release"] == case.ref
    release_run = client.get_run(version.run_id)
    parent = client.get_run(release_run.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "trial REFUSED" and parent.data.metrics == {"ap50": 0.25}
    assert parent.data.tags["workbench.status"] == "refused"
    assert parent.data.tags["mlflow.note.content"] == "* why"
    experiment = client.get_experiment(parent.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    link = f"#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}?workflowType="
    assert version.description.startswith("**FAIL**") and link in version.description
    assert store.side(case.ref, "registry")["version"] == 2
    assert int(client.get_registered_model(model).aliases["candidate"]) == 2
    names = {file.path for file in client.list_artifacts(version.run_id, "bundle")}
    assert "bundle/signature" in names
