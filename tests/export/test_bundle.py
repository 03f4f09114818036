"""From a checkpoint record to a bundle record; damaged bundle folders; the target matrix."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

from tests.export import conftest
from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.detection import bundles
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.model import Model
from workbench.detection.predictor import OnnxPredictor, TorchPredictor, load_checkpoint
from workbench.detection.preprocessing import load_rgb
from workbench.evaluation.metrics import evaluate
from workbench.export import bundle, exporter, parity
from workbench.export.exporter import Comparison, Quantized
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Role
from workbench.records.model_types import CalibrationSet, Checkpoint, ExportBundle
from workbench.records.store import Store

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = replace(conftest.SETTINGS, target=False)


@pytest.fixture(scope="module")
def checkpoint(kept: Workspace, dataset: Dataset, predictor: TorchPredictor) -> Ref:
    assert dataset.ref
    record = Checkpoint(
        dataset=dataset.ref,
        classes=predictor.classes,
        architecture=predictor.config.model_dump(mode="json"),
        training={},
        preprocessing=predictor.preprocessing.model_dump(mode="json"),
    )
    weights = safetensors.torch.save(predictor.detector.state_dict())
    return Store(kept).put(record, {"weights.safetensors": weights, "curves.json": b"{}"})


@pytest.fixture(scope="module")
def trained(kept: Workspace, checkpoint: Ref) -> TorchPredictor:
    return load_checkpoint(Store(kept), checkpoint)


@pytest.fixture(scope="module")
def exported(dataset: Dataset, trained: TorchPredictor) -> Comparison:
    return exporter.compare(exporter.quantize(trained, dataset, SETTINGS), dataset, SETTINGS)


def test_a_bundle_is_saved_as_a_record(
    kept: Workspace, folder: Path, exported: Comparison, checkpoint: Ref
) -> None:
    store = Store(kept)
    manifest = exporter.write(folder, exported)
    latency = exporter.measure(exported.quantized, SETTINGS)
    ref = bundle.save_bundle(store, folder, latency=latency)
    assert exporter.save(store, exported) == ref
    record = store.get(ref, ExportBundle)
    assert record.checkpoint == checkpoint
    assert record.parity["targets"][bundles.FP32_FILE]["agreement"] in (1, None)
    assert set(store.payload_names(ref)) == {path.name for path in folder.iterdir()}
    assert manifest["simulated"] is True
    assert manifest["targets"] == []  # nothing was asked about
    assert record.calibration_set
    picked = store.get(record.calibration_set, CalibrationSet)
    assert (picked.chosen, picked.evaluated) == ("minmax", 18)
    assert [row.method for row in picked.methods] == ["minmax"]
    assert set(store.side(ref, "latency")["models"]) == {bundles.FP32_FILE, bundles.INT8_CPU_FILE}


def test_exporting_again_gives_the_same_record(
    kept: Workspace, dataset: Dataset, checkpoint: Ref, exported: Comparison
) -> None:
    again = exporter.export(Model(kept, checkpoint), dataset, SETTINGS)
    assert again.ref == exporter.save(Store(kept), exported)
    assert again.checkpoint == checkpoint


def test_a_model_knows_the_threshold_that_its_bundle_was_exported_with(
    kept: Workspace, exported: Comparison, checkpoint: Ref, dataset: Dataset
) -> None:
    store = Store(kept)
    without = Model(kept, exporter.save(store, exported))  # as before there was one
    scores = sorted(box.score for box in without.predict(dataset.role("val")).boxes)
    middle = round(scores[len(scores) // 2], 3)
    assert scores[0] < middle < scores[-1]
    point = bundles.OperatingPoint(threshold=middle, how="chosen on val", precision=0.5)
    chosen = Model(kept, exporter.save(store, exported, operating_point=point))
    assert chosen.operating_point == point and chosen.threshold == middle
    assert str(middle) in chosen._repr_html_()
    assert without.operating_point is None and Model(kept, checkpoint).operating_point is None
    assert without.threshold == Model(kept, checkpoint).threshold == CONFIDENCE_THRESHOLD
    manifests = [
        json.loads(store.read_payload(one.ref, bundles.MANIFEST_FILE)) for one in (chosen, without)
    ]
    assert [one["schema_version"] for one in manifests] == [2, 1]
    found = chosen.predict(dataset.role("val"))
    assert found.threshold == middle
    assert found.above().boxes == found.above(middle).boxes != found.boxes
    assert evaluate(found).metrics.settings.threshold == middle


def test_the_int8_file_of_a_record_runs_on_its_own(
    kept: Workspace,
    folder: Path,
    dataset: Dataset,
    trained: TorchPredictor,
    exported: Comparison,
) -> None:
    ref = exporter.save(Store(kept), exported)
    model = OnnxPredictor(Store(kept).payload(ref, bundles.INT8_CPU_FILE))
    assert model.classes == trained.classes
    frame = dataset.frames[0]
    found = model.predict([load_rgb(media_path(kept, frame))])[0]
    assert len(found) > 0
    assert found.boxes[:, 2].max() <= frame.width


def test_the_files_are_consistent(
    folder: Path, trained: TorchPredictor, exported: Comparison
) -> None:
    manifest = exporter.write(folder, exported)
    assert bundles.read_manifest(folder) == manifest
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (folder / name).stat().st_size
    calibration = json.loads((folder / bundles.CALIBRATION_FILE).read_bytes())
    assert len(calibration["frames"]) == sum(calibration["slices"].values()) == 16
    content = (folder / bundles.PREPROCESSING_FILE).read_bytes()
    assert digest.of_bytes(content) == manifest["preprocessing"] == trained.preprocessing.digest


@pytest.mark.parametrize("name", [bundles.FP32_FILE, bundles.PARITY_FILE])
def test_a_changed_missing_or_added_file_is_refused(
    kept: Workspace, folder: Path, exported: Comparison, name: str
) -> None:
    exporter.write(folder, exported)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(RecordError, match="missing or was changed"):
        bundle.save_bundle(Store(kept), folder)
    (folder / name).unlink()
    with pytest.raises(RecordError, match="missing or was changed"):
        bundle.save_bundle(Store(kept), folder)
    (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(RecordError, match=r"notes\.txt"):
        bundle.save_bundle(Store(kept), folder)
    (folder / bundles.MANIFEST_FILE).write_text("[]")
    with pytest.raises(RecordError, match="manifest"):
        bundle.save_bundle(Store(kept), folder)


def test_a_folder_that_is_not_empty_is_refused(folder: Path, exported: Comparison) -> None:
    folder.mkdir()
    (folder / "old.onnx").touch()
    with pytest.raises(ParameterError, match="not empty"):
        exporter.write(folder, exported)


def test_a_model_that_is_not_a_saved_checkpoint_is_refused(
    folder: Path, quantized: Quantized, exported: Comparison
) -> None:
    with pytest.raises(WorkbenchError, match="saved checkpoint"):
        exporter.write(folder, replace(exported, quantized=quantized))


def test_evaluation_frames_are_required_and_never_trained_on(dataset: Dataset) -> None:
    learned = replace(dataset.role(Role.TRAIN), ref=dataset.ref)
    with pytest.raises(ParameterError, match="val or safety"):
        exporter.evaluation_frames(learned, 100)
    compared = {frame.id for frame in exporter.evaluation_frames(dataset, 100)}
    assert compared
    assert not compared & {frame.id for frame in learned.frames}


def test_the_target_matrix_claims_only_what_was_done(
    quantized: Quantized, dataset: Dataset
) -> None:
    planned = bundle.load_target_matrix(ROOT / bundle.DEFAULT_TARGETS)
    comparison = exporter.compare(quantized, dataset, conftest.SETTINGS)
    rows = exporter.check_targets(comparison, planned)
    by_chip = {(row.chip, row.file): row for row in rows}
    orin = by_chip["NVIDIA Orin GPU", bundles.INT8_TARGET_FILE]
    assert orin.status == "linted"
    assert "never built or run" in orin.why
    old = by_chip[
        "NVIDIA Xavier GPU", bundles.INT8_TARGET_FILE
    ]  # its compiler knows an older opset
    assert old.status == "untested"
    assert by_chip["Renesas R-Car V4H", bundles.FP32_FILE].status == "untested"
    assert {
        row.status for row in rows if row.machine == "onnxruntime" and "Arm" not in row.chip
    } == {"verified"}
    assert bundles.PROGRAM_FILE not in {row.file for row in rows}  # no such file in this bundle
    models = quantized.files
    wrong = {**models, bundles.INT8_TARGET_FILE: models[bundles.INT8_CPU_FILE]}
    confused = replace(comparison, quantized=replace(quantized, files=wrong))
    refused = {row.chip: row for row in exporter.check_targets(confused, planned)}
    assert refused["NVIDIA Orin GPU"].status == "untested"
    assert "not int8" in refused["NVIDIA Orin GPU"].why
    elsewhere = bundle.assess_targets(
        planned, models, {f"onnxruntime {bundles.FP32_FILE}": "x"}, machine="riscv"
    )
    assert {row.status for row in elsewhere if row.file == bundles.FP32_FILE} == {"untested"}


def test_an_invalid_target_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text(
        (ROOT / bundle.DEFAULT_TARGETS).read_text().replace("proof: lint", "proof: hope", 1)
    )
    with pytest.raises(ParameterError, match="target matrix"):
        bundle.load_target_matrix(path)
    with pytest.raises(ParameterError, match="cannot be read"):
        bundle.load_target_matrix(tmp_path / "none.yaml")


def test_the_parity_report_is_plain_json(exported: Comparison) -> None:
    assert json.loads(digest.canonical_json(exported.report)) == exported.report
    assert parity.parity_table(exported.report)[0]["frames"] == 8
