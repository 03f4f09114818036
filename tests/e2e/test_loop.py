"""The loop end to end: it ends with a verdict, repeats for free, and can account for itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny_run import TINY, TinyRun, run_pipeline, workbench
from workbench.core.workspace import Workspace
from workbench.pipeline.lineage.graph import NODE_KINDS
from workbench.records.base import GateReport, Verdict, digest_of
from workbench.records.model_types import Release
from workbench.records.types import LabelSet

STEPS = (
    "ingest",
    "baseline",
    "curate",
    "send",
    "collect",
    "inspect",
    "retrain",
    "export",
    "validate",
    "release",
)


def test_the_report_is_what_machines_were_promised(tiny_run: TinyRun) -> None:
    report = tiny_run.outcome.report
    assert set(report) == {
        "pipeline",
        "run_id",
        "status",
        "steps",
        "outputs",
        "model",
        "bundle",
        "gates",
        "quarantined",
    }
    assert tuple(step["name"] for step in report["steps"]) == STEPS
    assert all(step["status"] == "ran" for step in report["steps"])
    assert tiny_run.outcome.status == {"succeeded": 0, "refused": 3}[report["status"]]
    assert report["model"]["name"] == "front-camera-builtin"
    assert report["model"]["version"] == 1
    for gate in report["gates"]:
        assert set(gate) == {"name", "verdict", "n", "value", "bound"}


def test_too_few_drives_refuse_promotion(tiny_run: TinyRun) -> None:
    """Twelve drives leave fewer than ten to judge on, which is not enough evidence."""
    gates = tiny_run.store.get(tiny_run.output("validate.gates"), GateReport)
    release = tiny_run.store.get(tiny_run.output("release.release"), Release)
    assert gates.verdict is not Verdict.PASS
    assert any(gate.verdict is Verdict.INSUFFICIENT for gate in gates.gates)
    assert not release.promoted
    assert gates.simulated


def test_a_rerun_runs_nothing_and_says_the_same(tiny_run: TinyRun) -> None:
    again = tiny_run.again()
    assert [step["status"] for step in again.report["steps"]] == ["skipped"] * len(STEPS)
    for key in ("status", "outputs", "model", "bundle", "gates"):
        assert again.report[key] == tiny_run.outcome.report[key]
    assert again.status == tiny_run.outcome.status


def test_a_lost_output_is_made_again_to_the_same_digest(tiny_run: TinyRun) -> None:
    ref = tiny_run.output("export.bundle")
    shutil.rmtree(tiny_run.store.folder(ref))
    again = tiny_run.again()
    assert again.step("export")["status"] == "ran"
    assert again.step("retrain")["status"] == "skipped"
    assert again.report["outputs"]["export.bundle"] == ref


def test_lineage_reaches_from_the_model_to_drives_and_annotators(tiny_run: TinyRun) -> None:
    done = workbench(tiny_run.workspace, "lineage", "models:/front-camera-builtin/1", "--json")
    graph = json.loads(done.stdout)
    kinds = {node["kind"] for node in graph["nodes"]}
    # Of two labelers' frames an agreement, what set the 8-bit ranges, and a look for leaks.
    assert kinds == {*NODE_KINDS, "agreement", "calibration", "inspection"}
    ids = {node["id"] for node in graph["nodes"]}
    assert all({edge["from"], edge["to"]} <= ids for edge in graph["edges"])
    root = tiny_run.output("release.release")
    assert _ancestors(graph, root) == ids - {root}
    annotators = [node for node in graph["nodes"] if node["kind"] == "annotator"]
    assert annotators
    assert all(node["simulated"] and node["minutes"] is None for node in annotators)


def test_the_bundle_verifies_until_a_byte_changes(tiny_run: TinyRun, tmp_path: Path) -> None:
    bundle = Path(tiny_run.outcome.report["bundle"])
    assert workbench(tiny_run.workspace, "verify", str(bundle)).returncode == 0
    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    content = bytearray((copy / "int8.cpu.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "int8.cpu.onnx").write_bytes(content)
    changed = workbench(tiny_run.workspace, "verify", str(copy))
    assert changed.returncode != 0
    assert "int8.cpu.onnx" in changed.stderr


def test_replayed_labels_say_so(tiny_run: TinyRun) -> None:
    labels = tiny_run.store.get(tiny_run.output("collect.labels"), LabelSet)
    assert labels.simulated
    assert len(labels.annotators) == 2
    assert labels.agreement
    payload = tiny_run.store.payload(tiny_run.output("collect.labels"), "labels.jsonl")
    origins = {json.loads(line)["origin"] for line in payload.read_text().splitlines()}
    assert origins == {"replayed"}


def test_people_are_waited_for_and_the_run_goes_on_from_there(tiny_run: TinyRun) -> None:
    waiting = tiny_run.again(labelers="people", budget="6")
    assert waiting.status == 4
    assert waiting.report["status"] == "waiting"
    assert waiting.step("collect")["status"] == "waiting"
    assert "0 of 6" in waiting.step("collect")["reason"]
    assert waiting.step("retrain")["status"] == "not-reached"
    again = tiny_run.again(labelers="people", budget="6")
    assert again.step("send")["status"] == "skipped"
    assert again.step("collect")["status"] == "waiting"


def test_mlflow_shows_the_runs_and_the_model(tiny_run: TinyRun) -> None:
    import mlflow

    from workbench import services

    uri = services.tracking_address(tiny_run.workspace)
    client = mlflow.MlflowClient(tracking_uri=uri)
    version = client.get_model_version_by_alias("front-camera-builtin", "candidate")
    assert version.tags["workbench.release"] == tiny_run.output("release.release")
    assert version.tags["workbench.digest"] == digest_of(tiny_run.output("export.bundle"))
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    names = {file.path for file in client.list_artifacts(version.run_id)}
    assert {"executed.ipynb", "bundle"} <= names
    experiment = run.info.experiment_id
    steps = client.search_runs(
        [experiment], f"tags.`workbench.run` = '{tiny_run.outcome.report['run_id']}'"
    )
    by_step = {run.data.tags.get("workbench.step"): run for run in steps}
    assert set(STEPS) <= set(by_step)
    assert by_step["baseline"].data.metrics["train/loss"] > 0
    assert by_step["baseline"].inputs.dataset_inputs


def test_replay_without_known_boxes_is_a_parameter_error(tiny_run: TinyRun, tmp_path: Path) -> None:
    images = tmp_path / "plain" / "drive-1"
    images.mkdir(parents=True)
    some = sorted(tiny_run.workspace.media.rglob("*.jpg"))[:12]
    for number, image in enumerate(some):
        shutil.copyfile(image, images / f"{number:06d}.jpg")
    refused = tiny_run.again(data=str(tmp_path / "plain"), format="images")
    assert refused.report["status"] == "failed"
    assert "labelers=replay needs" in refused.step("ingest")["reason"]
    assert refused.step("baseline")["status"] == "not-reached"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labelers": "nobody"}, "Known: people, replay"),
        ({"data": "no/such/folder"}, "no such file or folder"),
        ({"bugdet": "3"}, "Did you mean 'budget'"),
    ],
)
def test_a_wrong_parameter_starts_nothing(
    workspace: Workspace, changes: dict[str, str], words: str
) -> None:
    outcome = run_pipeline(workspace, {**TINY, **changes})
    assert outcome.status == 2
    assert words in outcome.errors
    assert not workspace.runs.exists()
    assert not workspace.services.exists()


def _ancestors(graph: dict[str, list[dict[str, str]]], root: str) -> set[str]:
    sources: dict[str, list[str]] = {}
    for edge in graph["edges"]:
        sources.setdefault(edge["to"], []).append(edge["from"])
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        for source in sources.get(waiting.pop(), []):
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return seen
