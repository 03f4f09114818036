"""The proof end to end: two arms labelled blind, two models, one report that claims no more."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.servers import Servers
from tests.tiny_run import ROOT, workbench
from workbench import labeling, services
from workbench.pipeline import contract, graph
from workbench.records import dataset
from workbench.records.base import Verdict, digest_of, kind_of
from workbench.records.frames import Role
from workbench.records.store import Store
from workbench.records.types import LabelBatch, MiningReport, Selection

PROOF = ROOT / "pipelines" / "mining_proof.yaml"
BUDGET = 6
GIVEN = {
    "profile": "tiny",
    "labelers": "replay",
    "training_steps": "8",
    "budget": str(BUDGET),
    "rare": "class=cyclist, light=night",
}


@pytest.fixture(scope="module")
def outcome(servers: Servers) -> dict[str, str]:
    """References that the pipeline made, by step and output."""
    pairs = [part for key, value in GIVEN.items() for part in ("-p", f"{key}={value}")]
    done = workbench(servers.workspace, "run", str(PROOF), "--json", *pairs)
    report = json.loads(done.stdout or "{}")
    assert report.get("status") == "succeeded", done.stderr
    outputs: dict[str, str] = report["outputs"]
    return outputs


def test_both_models_are_trained_alike() -> None:
    pipeline = graph.load_pipeline(PROOF, {}, base=ROOT)
    mined, control = pipeline.steps["with_mined"], pipeline.steps["with_control"]
    assert mined.parameters == control.parameters
    assert mined.contract.notebook == control.contract.notebook
    assert pipeline.steps["curate"].parameters["control"] is True


@pytest.mark.slow
def test_the_proof_runs_and_says_that_its_labels_are_replayed(
    servers: Servers, outcome: dict[str, str]
) -> None:
    store = Store(servers.workspace)
    report = store.get(outcome["compare.report"], MiningReport)
    assert report.simulated
    assert report.headline.startswith("SIMULATED: labels were replayed")
    assert report.selection == outcome["curate.selection"]
    assert {arm.arm: arm.frames for arm in report.arms} == {"mined": BUDGET, "control": BUDGET}
    figures = [one.figure for one in report.beaten]
    assert figures[:3] == [f"rare {w} per labeler hour" for w in ("frames", "events", "objects")]
    assert "ap50 of all classes, retrained" in figures
    # Twelve tiny drives and twelve frames decide nothing, and the report knows.
    assert all(one.verdict is Verdict.INSUFFICIENT and one.why for one in report.beaten)
    for notebook in ("arms", "compare"):
        declared = contract.read_contract(
            ROOT / "notebooks" / "steps" / f"{notebook}.ipynb"
        ).declaration
        for name, output in declared.outputs.items():
            assert kind_of(outcome[f"{notebook}.{name}"]) == output.kind


@pytest.mark.slow
def test_the_arms_differ_in_nothing_but_their_frames(
    servers: Servers, outcome: dict[str, str]
) -> None:
    store = Store(servers.workspace)
    selection = store.get(outcome["curate.selection"], Selection)
    arms = {choice.frame: choice.arm for choice in selection.chosen}
    for arm in ("mined", "control"):
        version = dataset.load_dataset(store, outcome[f"arms.{arm}"])
        learned = {frame.id for frame in version.role(Role.TRAIN).frames}
        assert learned == {frame for frame, its in arms.items() if its == arm}
        assert version.name == f"builtin-{arm}"


@pytest.mark.slow
def test_labelers_saw_neither_arm_nor_rank(servers: Servers, outcome: dict[str, str]) -> None:
    store = Store(servers.workspace)
    batch = store.get(outcome["send.batch"], LabelBatch)
    assert batch.blind
    admin = services.label_studio_admin(servers.workspace)
    server = labeling.connect(admin.url, admin.token)
    sent = labeling.send(servers.workspace, server, outcome["send.batch"])
    tasks = server.export_tasks(
        sent.project,
        list(server.task_by_frame(sent.project, digest_of(outcome["send.batch"])).values()),
    )
    selection = store.get(outcome["curate.selection"], Selection)
    arms = {choice.frame: choice.arm for choice in selection.chosen}
    data = sorted((task["data"] for task in tasks), key=lambda each: each["rank"])
    assert {each["why"] for each in data} == {"chosen for labeling"}
    order = [arms[each["frame"]] for each in data]
    assert order not in (sorted(order), sorted(order, reverse=True))


@pytest.mark.slow
def test_the_command_says_the_same_as_the_step(servers: Servers, outcome: dict[str, str]) -> None:
    done: subprocess.CompletedProcess[str] = workbench(
        servers.workspace,
        *("mine", "report", outcome["curate.selection"], "--json"),
        *("--labels", outcome["send.batch"], "--rare", "class=cyclist", "--rare", "light=night"),
        *("--seconds-per-frame", "10", "--seconds-per-box", "5"),
        *("--mined-model", outcome["with_mined.checkpoint"]),
        *("--control-model", outcome["with_control.checkpoint"]),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    step = Store(servers.workspace).get(outcome["compare.report"], MiningReport)
    assert said["beaten"] == step.model_dump(mode="json")["beaten"]
    assert said["report"] == outcome["compare.report"]
