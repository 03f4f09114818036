"""Leaves, which are copied: raw frames, labels, champions and files that steps read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import CONTRACT, write_notebook
from tests.pipeline.reproduction.runs import bare_notebook, record, record_runs, reproduce
from workbench.core import digest
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace
from workbench.pipeline import cache, environment
from workbench.pipeline.reproduction.ancestry import trace_ancestry
from workbench.records import dataset as datasets
from workbench.records import frames
from workbench.records.base import GateReport, Ref, Verdict
from workbench.records.model_types import ExportBundle, NotebookSource, StepRun
from workbench.records.store import Store
from workbench.records.types import Annotator, LabelBatch, LabelSet


def test_a_file_that_a_step_read_is_restored_from_the_lineage(
    project: Path, workspace: Workspace
) -> None:
    rules = project / "rules.txt"
    rules.write_text("7")
    notebook = write_notebook(
        project / "notebooks/steps/a.ipynb",
        "n = int(step.path(rules).read_text())",
        parameters="n: int = 1\nrules: str = 'rules.txt'",
        contract={**CONTRACT, "paths": {"rules": {}}},
    )
    run = record(workspace, notebook, paths={"rules": str(rules)})
    rules.write_text("8")
    status, report, _ = reproduce(run.outputs["selection"])
    assert (status, report["notes"]) == (0, [])


def test_large_files_and_secrets_are_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    key = digest.of_bytes(b"fine")
    for content, expected in {"fine": ["files/f"], "changed": [], "x" * 2**21: []}.items():
        path.write_text(content)
        assert list(cache.collect_small_files({"f": str(path)}, {"f": key})) == expected
    path.write_text("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END")
    assert cache.collect_small_files({"f": str(path)}, {"f": digest.of_file(path)}) == {}
    assert cache.collect_small_files({"f": str(tmp_path)}, {"f": key}) == {}


def test_outputs_of_servers_and_labelers_are_copied(project: Path, workspace: Workspace) -> None:
    steps = project / "notebooks" / "steps"
    contract = {**CONTRACT, "services": ["label-studio"]}
    write_notebook(steps / "a.ipynb", "raise_if_run_again = 1", contract=contract)
    run = record_runs(workspace, project)
    status, report, _ = reproduce(run.outputs["selection"])
    assert status == 0
    assert [step["name"] for step in report["steps"]] == ["b"]
    assert "label-studio" in report["leaves"][0]["why"]
    clean = Store(Workspace(Path(report["folder"]) / ".workbench"))
    assert clean.load(report["leaves"][0]["ref"])
    with pytest.raises(RecordError, match="needs label-studio"):
        trace_ancestry(Store(workspace), report["leaves"][0]["ref"])


MERGE = """
from workbench.labeling import merge
from workbench.records import dataset as datasets
dataset = datasets.load_dataset(step.store, step.input('dataset'))
merged = merge(step.store, dataset, step.input('labels'))
step.output('dataset', merged.ref)
"""


def test_labels_are_merged_again_without_the_server(
    project: Path, workspace: Workspace, store: Store
) -> None:
    dataset, labels = _labeled(workspace, store)
    contract = {
        "inputs": {"dataset": {"kind": "dataset"}, "labels": {"kind": "label"}},
        "outputs": {"dataset": {"kind": "dataset"}, "selection": {"kind": "selection"}},
        "services": ["label-studio"],
    }
    notebook = write_notebook(project / "notebooks/steps/c.ipynb", MERGE, contract=contract)
    run = record(workspace, notebook, dataset=dataset, labels=labels)
    status, report, _ = reproduce(run.outputs["dataset"])
    assert status == 0
    assert [(step["name"], step["how"]) for step in report["steps"]] == [("c", "merged")]
    batch = store.get(labels, LabelSet).batch
    assert {leaf["ref"] for leaf in report["leaves"]} == {dataset, labels, batch}
    clean = Workspace(Path(report["folder"]) / ".workbench")
    frame = datasets.load_dataset(Store(clean), dataset).frames[0]
    assert digest.of_file(datasets.media_path(clean, frame)) == frame.id
    image = datasets.media_path(workspace, frame)
    image.unlink()
    image.write_bytes(b"another picture")
    with pytest.raises(RecordError, match="image of the dataset"):
        reproduce(run.outputs["dataset"])


def _labeled(workspace: Workspace, store: Store) -> tuple[Ref, Ref]:
    """A dataset of one image, and a label set for it."""
    content = b"a picture"
    frame = frames.Frame(
        id=digest.of_bytes(content),
        drive="d1",
        index=0,
        width=64,
        height=48,
        suffix=".jpg",
        role=frames.Role.POOL,
    )
    image = datasets.media_path(workspace, frame)
    image.parent.mkdir(parents=True)
    image.write_bytes(content)
    schema = frames.LabelSchema(name="one", version=1, classes=("car",))
    dataset = datasets.Dataset(
        name="one",
        label_schema=schema,
        drives=(frames.Drive(id="d1"),),
        frames=(frame,),
        labels=(),
    )
    ref = datasets.save_dataset(store, dataset, made_by="ingest")
    batch = LabelBatch(
        dataset=ref,
        selection="selection/" + "0" * 64,
        model=None,
        label_schema=schema,
        frames=(frame.id,),
    )
    people = (Annotator(id="ann", frames=1, boxes=0),)
    labelset = LabelSet(batch=store.put(batch), annotators=people, labels=0)
    return ref, store.put(labelset, {"labels.jsonl": b"", "answers.jsonl": b""})


def test_a_champion_is_not_rebuilt(store: Store) -> None:
    none = "0" * 64
    old, new = (
        store.put(
            ExportBundle(
                checkpoint=f"checkpoint/{none}",
                calibration=f"dataset/{none}",
                classes=(name,),
                parity={},
            )
        )
        for name in ("old", "new")
    )
    gates = store.put(
        GateReport(
            candidate=new,
            reference=old,
            dataset=f"dataset/{none}",
            rules=none,
            verdict=Verdict.PASS,
            gates=(),
        )
    )
    notebook = store.put(
        NotebookSource(name="trial", code=none),
        {"notebook.ipynb": json.dumps(bare_notebook()).encode()},
    )
    common: dict[str, Any] = {
        "key": none,
        "notebook": notebook,
        "environment": store.put(environment.current_environment()),
        "modules": none,
        "parameters": {},
    }
    store.put(StepRun(step="export", inputs={}, outputs={"bundle": old}, **common))
    store.put(StepRun(step="export", inputs={}, outputs={"bundle": new}, **common))
    given = {"bundle": new, "champion": old}
    store.put(StepRun(step="validate", inputs=given, outputs={"gates": gates}, **common))
    ancestry = trace_ancestry(store, gates)
    assert [(step.name, list(step.record.outputs)) for step in ancestry.steps] == [
        ("export", ["bundle"]),
        ("validate", ["gates"]),
    ]
    assert [(leaf.ref, "compared with" in leaf.why) for leaf in ancestry.leaves] == [(old, True)]
