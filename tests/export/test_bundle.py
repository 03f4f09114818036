"""From a checkpoint record to a bundle record, and what a damaged folder gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

from workbench import digest
from workbench.errors import ParameterError, RecordError, WorkbenchError
from workbench.export import bundle, matrix, parity, recipe
from workbench.export.recipe import ExportConfig, Exported
from workbench.perception.predictor import OnnxPredictor, TorchPredictor, load_checkpoint
from workbench.perception.preprocessing import load_rgb
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Role
from workbench.records.store import Store
from workbench.records.types import CalibrationSet, Checkpoint, ExportBundle
from workbench.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ExportConfig(calibration_frames=16, parity_frames=8, target=False)


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
def exported(kept: Workspace, dataset: Dataset, trained: TorchPredictor) -> Exported:
    return recipe.export(kept, trained, dataset, CONFIG)


def test_a_bundle_is_kept_as_a_record(
    kept: Workspace, folder: Path, trained: TorchPredictor, exported: Exported, checkpoint: Ref
) -> None:
    store = Store(kept)
    manifest = recipe.write(folder, trained, exported)
    ref = bundle.save(store, folder, latency=exported.latency)
    record = store.get(ref, ExportBundle)
    assert record.checkpoint == checkpoint
    assert record.parity["targets"][bundle.FP32]["agreement"] in (1, None)
    assert set(store.payload_names(ref)) == {path.name for path in folder.iterdir()}
    assert manifest["simulated"] is True
    assert manifest["targets"] == []  # nothing was asked about
    assert record.calibration_set
    picked = store.get(record.calibration_set, CalibrationSet)
    assert (picked.chosen, picked.evaluated) == ("minmax", 18)
    assert [row.method for row in picked.methods] == ["minmax"]
    assert set(store.side(ref, "latency")["models"]) == {bundle.FP32, bundle.INT8_CPU}


def test_exporting_again_gives_the_same_record(
    kept: Workspace,
    tmp_path: Path,
    dataset: Dataset,
    trained: TorchPredictor,
    exported: Exported,
) -> None:
    again = recipe.export(kept, trained, dataset, CONFIG)
    refs = []
    for name, made in (("first", exported), ("second", again)):
        recipe.write(tmp_path / name, trained, made)
        refs.append(bundle.save(Store(kept), tmp_path / name, latency=made.latency))
    assert refs[0] == refs[1]


def test_the_8_bit_file_of_a_record_runs_on_its_own(
    kept: Workspace,
    folder: Path,
    dataset: Dataset,
    trained: TorchPredictor,
    exported: Exported,
) -> None:
    recipe.write(folder, trained, exported)
    ref = bundle.save(Store(kept), folder)
    model = OnnxPredictor(Store(kept).payload(ref, bundle.INT8_CPU))
    assert model.classes == trained.classes
    frame = dataset.frames[0]
    found = model.predict([load_rgb(media_path(kept, frame))])[0]
    assert len(found) > 0
    assert found.boxes[:, 2].max() <= frame.width


def test_the_files_tell_the_same_story(
    folder: Path, trained: TorchPredictor, exported: Exported
) -> None:
    manifest = recipe.write(folder, trained, exported)
    assert bundle.read_manifest(folder) == manifest
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (folder / name).stat().st_size
    calibration = json.loads((folder / bundle.CALIBRATION).read_bytes())
    assert len(calibration["frames"]) == sum(calibration["slices"].values()) == 16
    content = (folder / bundle.PREPROCESSING).read_bytes()
    assert digest.of_bytes(content) == manifest["preprocessing"] == trained.preprocessing.digest


@pytest.mark.parametrize("name", [bundle.FP32, bundle.PARITY])
def test_a_changed_missing_or_added_file_is_no_bundle(
    kept: Workspace, folder: Path, trained: TorchPredictor, exported: Exported, name: str
) -> None:
    recipe.write(folder, trained, exported)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(RecordError, match="missing or was changed"):
        bundle.save(Store(kept), folder)
    (folder / name).unlink()
    with pytest.raises(RecordError, match="missing or was changed"):
        bundle.save(Store(kept), folder)
    (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(RecordError, match=r"notes\.txt"):
        bundle.save(Store(kept), folder)
    (folder / bundle.MANIFEST).write_text("[]")
    with pytest.raises(RecordError, match="manifest"):
        bundle.save(Store(kept), folder)


def test_a_folder_with_something_in_it_is_refused(
    folder: Path, trained: TorchPredictor, exported: Exported
) -> None:
    folder.mkdir()
    (folder / "old.onnx").touch()
    with pytest.raises(ParameterError, match="not empty"):
        recipe.write(folder, trained, exported)


def test_a_model_without_a_record_is_not_bundled(
    folder: Path, predictor: TorchPredictor, exported: Exported
) -> None:
    with pytest.raises(WorkbenchError, match="on record"):
        recipe.write(folder, predictor, exported)


def test_without_frames_to_compare_on_nothing_is_exported(
    kept: Workspace, dataset: Dataset, trained: TorchPredictor
) -> None:
    learned = replace(dataset.with_roles(Role.TRAIN), ref=dataset.ref)
    with pytest.raises(ParameterError, match="val or safety"):
        recipe.frames_to_compare(learned)
    compared = {frame.id for frame in recipe.frames_to_compare(dataset)}
    assert compared
    assert not compared & {frame.id for frame in learned.frames}


def test_the_matrix_never_says_more_than_was_done(
    models: dict[str, bytes], trained: TorchPredictor, kept: Workspace, dataset: Dataset
) -> None:
    planned = matrix.load(ROOT / matrix.DEFAULT)
    pixels = [load_rgb(media_path(kept, frame)) for frame in dataset.frames[:2]]
    rows = recipe.targets_of(models, trained, pixels, planned)
    by_chip = {(row.chip, row.file): row for row in rows}
    orin = by_chip["NVIDIA Orin GPU", bundle.INT8_TARGET]
    assert orin.status == "linted"
    assert "never built or run" in orin.why
    old = by_chip["NVIDIA Xavier GPU", bundle.INT8_TARGET]  # its compiler knows an older opset
    assert old.status == "untested"
    assert by_chip["Renesas R-Car V4H", bundle.FP32].status == "untested"
    assert {
        row.status for row in rows if row.machine == "onnxruntime" and "Arm" not in row.chip
    } == {"verified"}
    assert bundle.PROGRAM not in {row.file for row in rows}  # no such file in this bundle
    wrong = {**models, bundle.INT8_TARGET: models[bundle.INT8_CPU]}
    refused = {row.chip: row for row in recipe.targets_of(wrong, trained, pixels, planned)}
    assert refused["NVIDIA Orin GPU"].status == "untested"
    assert "not int8" in refused["NVIDIA Orin GPU"].why
    elsewhere = matrix.assess(planned, models, {f"onnxruntime {bundle.FP32}": "x"}, machine="riscv")
    assert {row.status for row in elsewhere if row.file == bundle.FP32} == {"untested"}


def test_a_matrix_with_a_strange_word_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text((ROOT / matrix.DEFAULT).read_text().replace("proof: lint", "proof: hope", 1))
    with pytest.raises(ParameterError, match="target matrix"):
        matrix.load(path)
    with pytest.raises(ParameterError, match="cannot be read"):
        matrix.load(tmp_path / "none.yaml")


def test_a_report_survives_json(exported: Exported) -> None:
    assert json.loads(digest.canonical_json(exported.parity)) == exported.parity
    assert parity.table(exported.parity)[0]["frames"] == 8
