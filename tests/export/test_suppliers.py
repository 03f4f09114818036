"""Detection transformers of other makers, from a folder to boxes on a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.training import suppliers
from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.cli.models import predict
from workbench.core.errors import ContractError
from workbench.core.workspace import Workspace
from workbench.detection import bundles, huggingface
from workbench.detection.predictor import TorchPredictor, load_checkpoint
from workbench.export import bundle, exporter, gate, parity, qat
from workbench.export.bundle import lint_symmetric
from workbench.export.exporter import ExportSettings
from workbench.export.quantization import export_int8_target
from workbench.records import dataset
from workbench.records.base import Verdict
from workbench.records.frames import Role
from workbench.records.model_types import Checkpoint, ExportBundle
from workbench.records.store import Store
from workbench.training import save_checkpoint, train

SETTINGS = ExportSettings(calibration_frames=8, parity_frames=4, target=False, program=False)
_DECODING = {"NonMaxSuppression", "Exp"}


def learned(
    workspace: Workspace, kind: str, folder: Path
) -> tuple[TorchPredictor, dataset.Dataset]:
    """A supplier's model tuned for a few steps, read back from its checkpoint."""
    store = Store(workspace)
    data = scenes(workspace, 14)
    roles = [Role.TRAIN] * 10 + [Role.VAL] * 4
    frames = tuple(
        frame.model_copy(update={"role": role})
        for frame, role in zip(data.frames, roles, strict=True)
    )
    data = dataset.load_dataset(
        store, dataset.save_dataset(store, replace(data, frames=frames), made_by="test")
    )
    training_data = data.role(Role.TRAIN)
    model = huggingface.load_pretrained(suppliers.make(kind, folder / kind), CLASSES, SPEC)
    config = TINY.replace(steps=4)
    trained = train(training_data, config, classes=CLASSES, preprocessing=SPEC, model=model)
    assert data.ref
    return load_checkpoint(store, save_checkpoint(store, trained, data.ref)), data


@pytest.mark.parametrize(
    "kind",
    ["detr", *(pytest.param(k, marks=pytest.mark.slow) for k in ("rt_detr_v2", "d_fine"))],
)
def test_a_pretrained_model_is_exported_and_run(
    kind: str, workspace: Workspace, tmp_path: Path
) -> None:
    predictor, data = learned(workspace, kind, tmp_path)
    quantized = exporter.quantize(predictor, data, SETTINGS)
    exported = exporter.compare(quantized, data, SETTINGS)

    found = exported.report["targets"]
    assert found[bundles.FP32_FILE]["max_abs_diff"] <= parity.FLOAT_TOLERANCE
    assert found[bundles.FP32_FILE]["queries"] > 0
    assert found[bundles.INT8_CPU_FILE]["max_abs_diff"] > found[bundles.FP32_FILE]["max_abs_diff"]
    # Not its size: of networks this tiny, the scales take more room than eight bits save.
    whole = onnx.load_from_string(quantized.files[bundles.INT8_CPU_FILE]).graph
    assert "QuantizeLinear" in {node.op_type for node in whole.node}
    graph = onnx.load_from_string(quantized.files[bundles.FP32_FILE]).graph
    assert [value.name for value in graph.output] == ["logits", "boxes"]
    assert not _DECODING & {node.op_type for node in graph.node}

    judged = gate.judge_file(bundles.INT8_CPU_FILE, (), _nothing, found[bundles.INT8_CPU_FILE])
    if (
        found[bundles.INT8_CPU_FILE]["sqnr_db"] < gate.LossLimits().head_db
    ):  # it lost too much, and is refused rather than shipped
        assert judged.verdict is Verdict.FAIL
        with pytest.raises(ContractError, match="loses too much"):
            gate.require_gates([judged])

    store, folder = Store(workspace), tmp_path / "bundle"
    manifest = exporter.write(folder, exported)
    ref = bundle.save_bundle(store, folder)
    supplier = store.get(store.get(ref, ExportBundle).checkpoint, Checkpoint).supplier
    assert supplier is not None
    assert manifest["supplier"] == supplier.model_dump(mode="json")
    assert manifest["supplier"]["licence"] == "apache-2.0"
    assert manifest["supplier"]["origin"] == f"folder:{kind}"

    _predicts(folder, tmp_path)
    pixels = [np.zeros((64, 96, 3), np.uint8)]
    with pytest.raises(ContractError, match="does not support transformers"):
        qat.distill(predictor, pixels, steps=1)


@pytest.mark.slow
def test_the_accelerator_file_is_made_or_refused_with_the_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (64, 96, 3)).astype(np.uint8) for _ in range(2)]
    made = {}
    for kind in suppliers.KINDS:
        model = huggingface.load_pretrained(suppliers.make(kind, tmp_path / kind), CLASSES, SPEC)
        try:
            made[kind] = lint_symmetric(export_int8_target(TorchPredictor(model, SPEC), pixels))
        except ContractError as error:
            assert "torchao cannot make the network symmetric int8" in str(error)
            assert "target=false" in str(error)
    assert set(made) == {"detr", "rt_detr_v2"}
    for findings in made.values():  # what TensorRT would not take is named, and nothing else
        assert findings
        assert not any("zero point" in each or "not int8" in each for each in findings)


def _nothing(*_: object) -> Any:
    raise AssertionError("nothing was evaluated")


def _predicts(folder: Path, elsewhere: Path) -> None:
    pictures, answers = elsewhere / "pictures", elsewhere / "answers.jsonl"
    pictures.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (90, 120, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    command = [str(folder), str(pictures), "-o", str(answers), "--json"]
    done = CliRunner().invoke(predict, command)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["statuses"]["ok"] == 3
    assert result["boxes"] > 0
    assert len(answers.read_text().splitlines()) == 4
