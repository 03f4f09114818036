"""The whole inspection, as a record and as a command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.curation.hygiene import synthetic
from workbench import cli
from workbench.core.errors import DataError
from workbench.core.workspace import Workspace
from workbench.curation import hygiene
from workbench.records import dataset as datasets
from workbench.records import references
from workbench.records.base import Ref, Verdict
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Role
from workbench.records.store import Store
from workbench.records.types import Selection


def saved(store: Store, dataset: Dataset) -> Ref:
    ref = datasets.save_dataset(store, dataset, made_by="test")
    references.register_dataset(store.workspace, ref)
    return ref


def leaking(workspace: Workspace) -> Dataset:
    dataset = synthetic.clean(workspace)
    worse = synthetic.encoded(synthetic.scene(9, step=6.0), "JPEG", quality=60)
    copy = synthetic.frame_of(workspace, worse, "copies", 0, Role.SEED, ".jpg")
    return synthetic.with_frames(dataset, copy)


def run(*arguments: str) -> int:
    try:
        cli.main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_findings_are_a_record_that_reads_back(workspace: Workspace, store: Store) -> None:
    ref = saved(store, leaking(workspace))
    ref_ = hygiene.inspect_dataset(store, ref)
    found = hygiene.read_findings(store, ref_)
    assert found.record.verdict is Verdict.FAIL
    assert found.record.dataset == ref
    assert {leak.kind for leak in found.leaks} == {"embedding"}
    assert found.record.near >= 1
    assert found.record.suspects is None
    assert "of 256 hash bits" in found.record.parameters["leak"]
    assert hygiene.inspect_dataset(store, ref) == ref_


def test_a_model_adds_vectors_and_label_errors(store: Store, dataset: Dataset, model: Ref) -> None:
    assert dataset.ref
    found = hygiene.read_findings(store, hygiene.inspect_dataset(store, dataset.ref, model))
    assert found.record.model == model
    assert found.record.suspects == len(found.errors)
    assert "cosine distance" in found.record.parameters["leak"]
    assert found.record.verdict is Verdict.PASS


def test_an_unreadable_frame_is_reported_and_skipped(workspace: Workspace, store: Store) -> None:
    dataset = synthetic.clean(workspace)
    ref = saved(store, dataset)
    media_path(workspace, dataset.frames[5]).write_bytes(b"torn")
    record = hygiene.read_findings(store, hygiene.inspect_dataset(store, ref)).record
    assert [one["frame"] for one in record.parameters["unreadable"]] == [dataset.frames[5].id]
    for frame in dataset.frames:
        media_path(workspace, frame).write_bytes(b"torn")
    for kept in (workspace.root / "fingerprints").rglob("*.npy"):
        kept.unlink()
    with pytest.raises(DataError, match="no usable frames"):
        hygiene.inspect_dataset(store, ref)


def test_a_dataset_without_frames_is_rejected(workspace: Workspace, store: Store) -> None:
    ref = saved(store, replace(synthetic.clean(workspace, drives=1), frames=(), drives=()))
    with pytest.raises(DataError, match="the dataset has no frames"):
        hygiene.inspect_dataset(store, ref)


def test_the_command_is_a_gate(
    workspace: Workspace, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(store, synthetic.clean(workspace))
    assert run("inspect", "planted", "--gate") == 0
    saved(store, leaking(workspace))
    assert run("inspect", "planted") == 0
    capsys.readouterr()
    assert run("inspect", "planted", "--gate", "--json") == 1
    output = json.loads(capsys.readouterr().out)
    assert output["verdict"] == "FAIL"
    assert output["label_errors"] is None
    assert output["leaks"][0]["kind"] == "embedding"
    assert {"side", "condition", "cls", "lacks"} <= output["thin"][0].keys()


def test_the_worst_labels_become_a_selection_to_send(
    store: Store, dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dataset.ref
    # An untrained model sees nothing in these large boxes, so some labels look wrong.
    status = run("inspect", dataset.ref, "--model", model, "--review", "2", "--json")
    output = json.loads(capsys.readouterr().out)
    if output.get("label_errors"):
        assert status == 0
        selection = store.get(output["selection"], Selection)
        assert len(selection.chosen) <= 2
        assert selection.method == "label-quality"
    else:
        assert output["error"]["message"] == "no suspicious labels found"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["inspect", "nowhere"], "unknown dataset name"),
        (["inspect", "planted", "--review", "3"], "--review needs --model"),
        (["inspect", "planted", "--gap", "-1"], "gap_s: Input should be greater"),
        (["inspect", "planted", "--target", "nowhere.yaml"], "cannot read the target table"),
    ],
)
def test_invalid_arguments_are_reported(
    workspace: Workspace,
    store: Store,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    output: str,
) -> None:
    saved(store, synthetic.clean(workspace, drives=2))
    assert run(*arguments) in (1, 2)
    assert output in capsys.readouterr().err
