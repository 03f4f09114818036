from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from workbench.core import digest
from workbench.core.errors import DataError, ParameterError, RecordError
from workbench.core.workspace import Workspace
from workbench.detection.config import DetectorConfig, to_onnx_metadata
from workbench.detection.detector import Detector, pool_features
from workbench.detection.families import output_names
from workbench.detection.predictor import (
    OnnxPredictor,
    TorchPredictor,
    load_checkpoint,
    predict_frames,
    read_batches,
)
from workbench.detection.preprocessing import Preprocessing, preprocess_batch
from workbench.records.base import make_ref
from workbench.records.dataset import media_path
from workbench.records.frames import Frame
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store

SPEC = Preprocessing(width=64, height=32)
CONFIG = DetectorConfig(classes=("car", "cyclist"), width=0.25, score_threshold=0.01)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(3)
    model = Detector(CONFIG)
    model.set_prior(torch.tensor([0.2, 0.1]))
    return model.eval()


@pytest.fixture(scope="module")
def onnx_bytes(detector: Detector) -> dict[str, bytes]:
    """The detector exported for any batch and for exactly two frames, without its contract."""
    program = torch.onnx.export(
        detector,
        (torch.zeros(2, 3, SPEC.height, SPEC.width),),
        dynamo=True,
        opset_version=18,
        external_data=False,
        output_names=list(output_names(CONFIG)),
        dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},),
        verbose=False,
    )
    proto = program.model_proto
    models = {"any": proto.SerializeToString()}
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    models["two"] = proto.SerializeToString()
    return models


def with_contract(model: bytes) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(model)
    for key, value in to_onnx_metadata(CONFIG, SPEC).items():
        proto.metadata_props.add(key=key, value=value)
    serialised: bytes = proto.SerializeToString()
    return serialised


def noise(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def keep_frame(workspace: Workspace, seed: int) -> Frame:
    stream = io.BytesIO()
    Image.fromarray(noise(seed)).save(stream, "PNG")
    frame = Frame(
        id=digest.of_bytes(stream.getvalue()), drive="d", index=seed, width=60, height=40,
        suffix=".png",
    )  # fmt: skip
    path = media_path(workspace, frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())
    return frame


def test_default_detector_is_small_and_uses_quantisable_layers_only() -> None:
    model = Detector(DetectorConfig(classes=tuple("abcdefghij")))
    assert 0.7e6 < sum(p.numel() for p in model.parameters()) < 1.0e6
    leaves = {type(module) for module in model.modules() if not list(module.children())}
    assert leaves == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}


def test_raw_maps_have_a_pair_for_each_stride(detector: Detector) -> None:
    outputs = detector(torch.zeros(2, 3, 32, 64))
    assert [tuple(output.shape) for output in outputs] == [
        (2, 2, 4, 8), (2, 4, 4, 8), (2, 2, 2, 4), (2, 4, 2, 4), (2, 2, 1, 2), (2, 4, 1, 2),
    ]  # fmt: skip
    assert len(outputs) == len(output_names(CONFIG))
    assert pool_features(detector.features(torch.zeros(2, 3, 32, 64))).shape == (2, 2 * 16 * 3)


def test_unsupported_strides_are_rejected() -> None:
    with pytest.raises(ParameterError, match="strides"):
        Detector(DetectorConfig(classes=("car",), strides=(4, 8)))


def test_boxes_are_in_pixels_of_each_image(detector: Detector) -> None:
    predictor = TorchPredictor(detector, SPEC)
    images = [noise(1), noise(2, 200, 100)]
    found = predictor.predict(images)
    assert all(len(detections) > 0 for detections in found)
    for image, detections in zip(images, found, strict=True):
        height, width = image.shape[:2]
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= [width, height, width, height]).all()
    # The tall image fills half the input's width: its boxes must be scaled up again.
    assert found[1].boxes[:, 3].max() > 100
    assert predictor.predict([]) == []


def test_pooled_features_distinguish_images(detector: Detector) -> None:
    batch, _ = preprocess_batch([noise(1), noise(2)], SPEC)
    maps = detector.eval().features(torch.from_numpy(batch))
    first, second = pool_features(maps)
    assert (first != second).any()
    assert torch.allclose(first, pool_features(tuple(level[:1] for level in maps))[0], atol=1e-5)


@pytest.mark.parametrize("batch", ["any", "two"])
def test_onnx_runtime_and_torch_give_equal_detections(
    detector: Detector, onnx_bytes: dict[str, bytes], batch: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_contract(onnx_bytes[batch]))
    deployed, trained = OnnxPredictor(path), TorchPredictor(detector, SPEC)
    assert (deployed.config, deployed.preprocessing) == (CONFIG, SPEC)
    images = [noise(seed) for seed in range(3)]  # not a multiple of two
    for ours, theirs in zip(trained.predict(images), deployed.predict(images), strict=True):
        assert len(ours) == len(theirs) > 0
        assert np.allclose(ours.boxes, theirs.boxes, atol=1e-2)
        assert np.allclose(ours.scores, theirs.scores, atol=1e-4)


def test_unusable_onnx_files_give_a_reason(onnx_bytes: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_bytes["any"])
    with pytest.raises(DataError, match=r"contract.*model\.onnx"):
        OnnxPredictor(path)
    path.write_bytes(b"not a model")
    with pytest.raises(DataError, match="cannot load"):
        OnnxPredictor(path)


def test_predictions_are_in_the_order_of_the_frames(
    workspace: Workspace, detector: Detector
) -> None:
    frames = [keep_frame(workspace, seed) for seed in range(5)]
    predictor = TorchPredictor(detector, SPEC)
    seen: list[tuple[int, int]] = []
    found = predict_frames(
        workspace,
        predictor,
        frames,
        batch=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert list(dict.fromkeys(row.frame for row in found)) == [frame.id for frame in frames]
    alone = predictor.predict([noise(3)])[0]
    own = [row for row in found if row.frame == frames[3].id]
    assert [row.score for row in own] == pytest.approx(alone.scores.tolist(), abs=1e-5)
    assert own[0].box.xyxy == pytest.approx(alone.boxes[0], abs=1e-3)
    assert own[0].cls == CONFIG.classes[alone.classes[0]]
    assert predict_frames(workspace, predictor, []) == []


def test_missing_image_is_named(workspace: Workspace) -> None:
    frames = [keep_frame(workspace, seed) for seed in range(3)]
    media_path(workspace, frames[2]).unlink()
    with pytest.raises(DataError, match=frames[2].id):
        list(read_batches(workspace, frames, 2))


def test_checkpoint_round_trip_and_damage_is_detected(store: Store, detector: Detector) -> None:
    from safetensors.torch import save

    record = Checkpoint(
        dataset=make_ref("dataset", "0" * 64),
        classes=CONFIG.classes,
        architecture=CONFIG.model_dump(mode="json"),
        training={},
        preprocessing=SPEC.model_dump(mode="json"),
    )
    ref = store.put(record, {"weights.safetensors": save(detector.state_dict())})
    loaded = load_checkpoint(store, ref)
    assert (loaded.ref, loaded.config, loaded.preprocessing) == (ref, CONFIG, SPEC)
    ours = TorchPredictor(detector, SPEC).predict([noise(1)])[0]
    assert (loaded.predict([noise(1)])[0].boxes == ours.boxes).all()

    other = record.model_copy(update={"architecture": {**record.architecture, "width": 0.5}})
    misfit = store.put(other, {"weights.safetensors": save(detector.state_dict())})
    with pytest.raises(DataError, match="do not fit"):
        load_checkpoint(store, misfit)
    payload = store.folder(ref) / "payload" / "weights.safetensors"
    payload.write_bytes(payload.read_bytes()[:-1] + b"\0")
    with pytest.raises(RecordError, match="changed"):
        load_checkpoint(Store(store.workspace), ref)
