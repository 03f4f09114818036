"""Models of every family: trained, kept, read again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training import suppliers
from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import Workspace
from workbench.data import FRONT_CAMERA
from workbench.detection import families, huggingface
from workbench.detection.boxes import Floats
from workbench.detection.config import HUGGING_FACE, DetectorConfig, GroundTruthBatch, Losses
from workbench.detection.detector import Detector
from workbench.detection.families import Detections, ModelFamily, register_family
from workbench.detection.huggingface import find_licence
from workbench.detection.predictor import load_checkpoint
from workbench.detection.preprocessing import load_rgb, preprocess_batch
from workbench.records.base import make_ref
from workbench.records.dataset import media_path
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store
from workbench.training import TrainingConfig, save_checkpoint, train

DATASET = make_ref("dataset", "1" * 64)
QUICK = TINY.replace(steps=3)


class Killed(Exception):
    pass


@pytest.fixture(scope="module", params=suppliers.KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suppliers.make(request.param, tmp_path_factory.mktemp("supplied") / request.param)


def test_a_suppliers_model_is_fine_tuned_and_recorded_with_its_licence(
    folder: Path, workspace: Workspace, store: Store
) -> None:
    dataset = scenes(workspace)
    model = huggingface.load_pretrained(folder, CLASSES, SPEC)
    trained = train(
        dataset,
        QUICK.replace(steps=6),
        classes=CLASSES,
        preprocessing=SPEC,
        model=model,
    )
    ref = save_checkpoint(store, trained, DATASET)
    record = store.get(ref, Checkpoint)
    assert record.family == HUGGING_FACE
    assert record.supplier is not None
    assert (record.supplier.licence, record.supplier.origin) == (
        "apache-2.0",
        f"folder:{folder.name}",
    )
    assert record.supplier.weights is not None
    assert str(folder.parent) not in store.folder(ref).joinpath("record.json").read_text()
    loaded = load_checkpoint(store, ref)
    image = load_rgb(media_path(workspace, dataset.frames[0]))
    batch, _ = preprocess_batch([image], SPEC)
    pairs = zip(trained.predictor().raw(batch), loaded.raw(batch), strict=True)
    assert all((one == other).all() for one, other in pairs)
    mine = loaded.predict([image])[0]
    height, width = image.shape[:2]
    assert (mine.boxes >= 0).all()
    assert (mine.boxes <= [width, height, width, height]).all()
    first, last = trained.curves["loss"][0], trained.curves["loss"][-1]
    assert last < first * 1.2


@pytest.mark.parametrize(
    "classes",
    [("car", "pedestrian", "animal", "cyclist"), ("animal", "car", "pedestrian"), ("car", "bus")],
)
def test_classes_that_the_model_knows_keep_their_weights(
    folder: Path, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    """Also where it has as many classes, in another order."""
    words = ("person", "car", "dog")
    named = shutil.copytree(folder, tmp_path / folder.name)
    settings = json.loads((named / "config.json").read_text())
    settings["id2label"] = {str(number): word for number, word in enumerate(words)}
    settings["label2id"] = {word: number for number, word in enumerate(words)}
    (named / "config.json").write_text(json.dumps(settings))
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    known = huggingface.load_pretrained(named, words, SPEC).eval()
    model = huggingface.load_pretrained(named, classes, SPEC, class_of=FRONT_CAMERA.class_of)
    with torch.inference_mode():
        expected, found = known(images)[0], model.eval()(images)[0]
    for number, word in enumerate(words):
        name = FRONT_CAMERA.class_of(word)
        if name in classes:
            # The queries may come in another order.
            ours = found[..., classes.index(name)].sort().values
            assert torch.allclose(ours, expected[..., number].sort().values, atol=1e-5), word


def test_fine_tuning_is_reproducible_and_resumes_after_a_kill(
    folder: Path, workspace: Workspace, tmp_path: Path
) -> None:
    """Also where the network draws: dropout of DETR, noise of the denoising queries."""
    dataset = scenes(workspace)
    config = TINY.replace(steps=4, keep_minutes=1e-9)

    def run(**more: Any) -> Any:
        model = huggingface.load_pretrained(folder, CLASSES, SPEC)
        return train(dataset, config, classes=CLASSES, preprocessing=SPEC, model=model, **more)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    whole = run()
    with pytest.raises(Killed):
        run(checkpoint_dir=tmp_path, progress=stop)
    resumed = run(checkpoint_dir=tmp_path)
    assert resumed.resumed_at == 2
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_a_suppliers_model_without_a_licence_is_refused(tmp_path: Path) -> None:
    folder = suppliers.make("detr", tmp_path / "detr", licence=None)
    with pytest.raises(DataError, match="no licence"):
        huggingface.load_pretrained(folder, CLASSES, SPEC)
    model = huggingface.load_pretrained(
        folder, CLASSES, SPEC, licence="agreed in writing, contract 7"
    )
    assert model.supplier is not None
    assert model.supplier.licence == "agreed in writing, contract 7"
    (folder / "LICENSE").write_text("\nMIT License\n\nPermission …")
    assert find_licence(folder) == "LICENSE: MIT License"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: acme-1\n---\n")
    assert find_licence(folder) == "acme-1"


def test_only_safetensors_of_a_suppliers_model_are_read(tmp_path: Path) -> None:
    folder = suppliers.make("detr", tmp_path / "detr")
    weights = folder / "model.safetensors"
    (folder / "pytorch_model.bin").write_bytes(weights.read_bytes())
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be loaded"):
        huggingface.load_pretrained(folder, CLASSES, SPEC)
    weights.unlink()
    with pytest.raises(DataError, match="no weights as safetensors"):
        huggingface.load_pretrained(folder, CLASSES, SPEC)
    architecture = huggingface.load_pretrained(folder, CLASSES, SPEC, fresh=True)
    assert architecture.supplier is not None
    assert architecture.supplier.weights is None
    with pytest.raises(DataError, match="folder does not exist"):
        huggingface.load_pretrained(tmp_path / "nowhere", CLASSES, SPEC)


def test_the_suppliers_normalization_becomes_the_preprocessing_contract(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert huggingface.pretrained_preprocessing(folder, width=96, height=64) == SPEC
    (folder / "preprocessor_config.json").write_text(
        '{"do_rescale": true, "do_normalize": false, "image_mean": [0.4, 0.5, 0.6]}'
    )
    plain = huggingface.pretrained_preprocessing(folder, width=96, height=64)
    assert (plain.mean, plain.std, plain.scale) == ((0, 0, 0), (1, 1, 1), 1 / 255)
    (folder / "preprocessor_config.json").write_text(
        '{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}'
    )
    assert huggingface.pretrained_preprocessing(folder, width=96, height=64).mean == (0.4, 0.5, 0.6)


def test_query_outputs_are_decoded_to_boxes() -> None:
    boxes = np.array([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.1, 0.2]]], np.float32)
    logits = np.array([[[3.0, -3.0], [-4.0, -4.0]]], np.float32)
    config = DetectorConfig(
        classes=CLASSES,
        architecture=HUGGING_FACE,
        network={"size": [96, 64], "scoring": "sigmoid", "config": {}},
    )
    (found,) = families.decode_queries([logits, boxes], config, score_threshold=0.3, nms_iou=0.5)
    assert found.boxes.tolist() == [[24, 16, 72, 48]]
    assert found.classes.tolist() == [0]
    shared = config.model_copy(update={"network": {**config.network, "scoring": "softmax"}})
    # The last class is no object: the second query is sure that there is none.
    three = np.array([[[0.0, 2.0, 0.0], [0.0, 0.0, 9.0]]], np.float32)
    (found,) = families.decode_queries([three, boxes], shared, score_threshold=0.3, nms_iou=0.5)
    assert found.classes.tolist() == [1]
    assert found.scores[0] == pytest.approx(np.exp(2) / (np.exp(2) + 2))
    with pytest.raises(DataError, match="expected 2 raw outputs"):
        families.decode_queries([logits], config, score_threshold=0.3, nms_iou=0.5)


@pytest.mark.parametrize(("size", "least", "most"), [("nano", 2e5, 3e5), ("medium", 2e6, 3e6)])
def test_the_compact_detector_has_three_sizes(
    size: str, least: float, most: float, workspace: Workspace, store: Store
) -> None:
    config = TrainingConfig.sized(size, steps=1, batch=2, threads=1)
    dataset = scenes(workspace, 2)
    trained = train(dataset, config, classes=CLASSES, preprocessing=SPEC)
    count = sum(weight.numel() for weight in trained.weights.values())
    assert least < count < most
    loaded = load_checkpoint(store, save_checkpoint(store, trained, DATASET))
    assert loaded.config.depth == config.depth
    kinds = {type(module) for module in loaded.detector.modules() if not list(module.children())}
    assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}  # what quantises well
    with pytest.raises(ParameterError, match="nano, small, medium"):
        TrainingConfig.sized("huge")


def test_the_default_detectors_config_has_its_original_fields() -> None:
    config = Detector(DetectorConfig(classes=CLASSES)).config.model_dump(mode="json")
    assert set(config) == {
        "architecture", "classes", "width", "strides", "score_threshold", "nms_iou",
        "max_detections",
    }  # fmt: skip


class OneBox(nn.Module):
    """The smallest model of one's own: it gives one box a frame, with losses of its own."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Conv2d(3, 4, 3, stride=4)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.head(self.body(images).mean((2, 3))),)

    def losses(self, images: Tensor, truth: GroundTruthBatch) -> Losses:
        found = self(images)[0]
        wanted = (truth.boxes * truth.real[..., None]).mean(1)
        box = (found[:, 1:] - wanted / 96).abs().mean()
        return Losses(box, box.detach() * 0, box.detach())


def read_one(
    outputs: Sequence[Floats], config: DetectorConfig, *, score_threshold: float, nms_iou: float
) -> list[Detections]:
    boxes = [np.sort(row[1:].reshape(2, 2), axis=0).reshape(1, 4) * 96 for row in outputs[0]]
    return [
        Detections(box.astype(np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
        for box in boxes
    ]


@pytest.fixture
def own_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelFamily]:
    monkeypatch.setattr(families, "_REGISTERED", {})
    family = ModelFamily("tests-one-box", OneBox, read_one, lambda config: ("found",))
    register_family(family)
    yield family


def test_a_custom_model_needs_forward_decode_and_a_name(
    own_family: ModelFamily, workspace: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = scenes(workspace)
    shape = DetectorConfig(classes=CLASSES, architecture=own_family.name)
    trained = train(dataset, QUICK, classes=CLASSES, preprocessing=SPEC, model=OneBox(shape))
    ref = save_checkpoint(store, trained, DATASET)
    image = load_rgb(media_path(workspace, dataset.frames[0]))
    assert len(load_checkpoint(store, ref).predict([image])[0]) <= 1
    assert store.get(ref, Checkpoint).family == "tests-one-box"
    with pytest.raises(ParameterError, match="already"):
        register_family(replace(own_family, build=Detector))
    monkeypatch.setattr(families, "_REGISTERED", {})
    with pytest.raises(DataError, match="Import the module"):
        load_checkpoint(store, ref)
