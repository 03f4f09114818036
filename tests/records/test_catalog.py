"""Lists of records, and which model is the default."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.curation.conftest import SCHEMA, make_checkpoint, record_step
from tests.data.test_roles import fleet
from tests.release.conftest import gate
from workbench.cli.mining import resolve_checkpoint
from workbench.core.errors import ParameterError
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
            rules="4" * 64,
            verdict=Verdict.PASS,
            gates=(gate(Verdict.PASS),),
        ),
        {"metrics.json": b"{}"},
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
