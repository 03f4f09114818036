"""Lists of records, and which model is the default."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.curation.conftest import SCHEMA, make_checkpoint, record_step
from tests.data.test_roles import fleet
from tests.release.conftest import METRICS, RULES, gate
from workbench.cli import main
from workbench.cli.mining import resolve_checkpoint
from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError
from workbench.core.workspace import Workspace
from workbench.records import catalog, references
from workbench.records import dataset as datasets
from workbench.records.base import GateReport, Ref, Verdict
from workbench.records.model_types import ExportBundle
from workbench.records.store import Store
from workbench.release.publishing import publish_release

CLASSES = SCHEMA.classes


@pytest.fixture
def dataset(workspace: Workspace, store: Store) -> datasets.Dataset:
    made = replace(fleet(1, 3), name="fleet", label_schema=SCHEMA, labels=())
    ref = datasets.save_dataset(store, made, made_by="test")
    references.register_dataset(workspace, ref)
    return datasets.load_dataset(store, ref)


def train(store: Store, dataset: Ref, folder: Path, seed: int, step: str = "") -> Ref:
    ref = make_checkpoint(store, dataset, folder, seed=seed)
    os.utime(store.folder(ref) / "COMPLETE", (seed, seed))  # a definite order
    if step:
        record_step(store, step, {"checkpoint": ref})
    return ref


def test_a_model_made_by_hand_is_never_the_default(
    store: Store, dataset: datasets.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dataset.ref is not None
    by_hand = train(store, dataset.ref, tmp_path, 9)
    with pytest.raises(ParameterError, match="no pipeline trained a model") as caught:
        resolve_checkpoint(store.workspace, store, None, dataset)
    assert f"--model {by_hand[:23]}" in str(caught.value)
    older = train(store, dataset.ref, tmp_path, 1, "baseline")
    newer = train(store, dataset.ref, tmp_path, 2, "retrain")
    assert resolve_checkpoint(store.workspace, store, None, dataset) == newer
    message = capsys.readouterr().err
    assert f"model: {newer[:23]}, retrain on fleet@1, AP50 not measured" in message
    assert resolve_checkpoint(store.workspace, store, by_hand, dataset) == by_hand
    assert {row.ref: row.made_by for row in catalog.list_models(store)} == {
        by_hand: "by hand",
        older: "baseline",
        newer: "retrain",
    }


def test_the_champion_is_the_default(
    store: Store, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    assert dataset.ref is not None
    first = train(store, dataset.ref, tmp_path, 1, "retrain")
    train(store, dataset.ref, tmp_path, 2, "retrain")
    exported = ExportBundle(checkpoint=first, calibration=dataset.ref, classes=CLASSES, parity={})
    bundle = store.put(exported, {"manifest.json": b"{}"})
    gates = store.put(
        GateReport(
            candidate=bundle,
            reference=None,
            dataset=dataset.ref,
            rules=digest.of_json(RULES),
            verdict=Verdict.PASS,
            gates=(gate(Verdict.PASS),),
        ),
        METRICS,
    )
    publish_release(store, bundle, gates, "front")
    metrics = {"fp32/ap50/all": 0.41, "baseline/ap50/all": 0.3}
    record_step(store, "validate", {"gates": gates}, inputs={"bundle": bundle}, metrics=metrics)
    found = catalog.default_model(store, "fleet", CLASSES)
    assert found is not None
    assert (found.ref, found.champion, found.ap50, found.names) == (first, True, 0.41, ("front/1",))
    assert "AP50 0.410" in str(found)
    assert catalog.default_model(store, "fleet", ("other",)) is None
    (release,) = catalog.list_releases(store)
    assert (release.model, release.promoted, release.checkpoint) == ("front", True, first)


_LISTS = ("datasets", "models", "selections", "batches", "releases", "steps", "audit log", "runs")


@pytest.mark.parametrize("kind", ["dataset", "checkpoint", "bundle", "release", "gates", "run"])
def test_lists_leave_out_what_is_damaged_and_name_it(
    store: Store,
    dataset: datasets.Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    assert dataset.ref is not None
    other = replace(fleet(1, 2), name="fleet", label_schema=SCHEMA, labels=())
    references.register_dataset(
        store.workspace, datasets.save_dataset(store, other, made_by="test")
    )
    for seed in (1, 2):
        model = train(store, dataset.ref, tmp_path, seed, "train")
        exported = ExportBundle(
            checkpoint=model, calibration=dataset.ref, classes=CLASSES, parity={}
        )
        bundle = store.put(exported, {"manifest.json": b'{"n": %d}' % seed})
        report = GateReport(
            candidate=bundle,
            reference=None,
            dataset=dataset.ref,
            rules=digest.of_json(RULES),
            verdict=Verdict.PASS,
            gates=(gate(Verdict.PASS),),
        )
        publish_release(store, bundle, store.put(report, METRICS), "front")
    damaged = next(store.refs(kind))
    file = store.folder(damaged) / "record.json"
    file.write_bytes(file.read_bytes().replace(b"{", b"[", 1))
    with (store.workspace.root / "audit" / "log.jsonl").open("ab") as log:
        log.write(b"{not a line\n")
    rows = {}
    for command in _LISTS:
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--json"])
        shown = capsys.readouterr()
        assert not ended.value.code, (command, shown.err)
        rows[command] = json.loads(shown.out)
        if damaged in rows[command].get("damaged", ()):
            assert f"left out: {damaged}: record does not match its digest" in shown.err
    assert len(rows["datasets"]["datasets"]) == (1 if kind == "dataset" else 2)
    assert len(rows["models"]["models"]) == (1 if kind == "checkpoint" else 2)
    assert len(rows["releases"]["releases"]) == (1 if kind == "release" else 2)
    assert len(rows["audit log"]["entries"]) == 2
    assert rows["audit log"]["damaged"] == ["line 3 of the audit log cannot be read"]
    listed = {"dataset": "datasets", "checkpoint": "models", "release": "releases"}.get(kind)
    assert listed is None or damaged in rows[listed]["damaged"]


def test_a_number_that_two_versions_claim_is_named(
    store: Store, dataset: datasets.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(fleet(1, 2), name="other", label_schema=SCHEMA, labels=())
    ref = datasets.save_dataset(store, other, made_by="test")
    references.register_dataset(store.workspace, ref)
    store.write_side(ref, "version", {"name": "fleet", "number": 1})
    with pytest.raises(SystemExit) as ended:
        main(["datasets", "--json"])
    assert not ended.value.code
    assert set(json.loads(capsys.readouterr().out)["damaged"]) == {ref, dataset.ref}
    with pytest.raises(RecordError, match="two dataset versions are fleet@1"):
        references.resolve_dataset(store.workspace, "fleet")
    # A number that nobody gave must not make a list of that length.
    store.write_side(ref, "version", {"name": "other", "number": 10**12})
    assert references.register_dataset(store.workspace, ref).number == 1
