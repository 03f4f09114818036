"""Image encoders: tiny models with random weights, saved into folders and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.curation.conftest import SIZE
from workbench.core.errors import DataError, ParameterError, ServiceError
from workbench.core.workspace import Workspace
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.image_encoders import (
    ONNX_METADATA_KEY,
    BoxSource,
    HuggingFaceEncoder,
    ImagePreprocessing,
    OnnxEncoder,
    read_preprocessor_config,
)
from workbench.detection.predictor import TorchPredictor, load_checkpoint
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.store import Store

VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 12,
    "max_position_embeddings": 6,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONFIG = {
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def model_of(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)
        return transformers.CLIPModel(config)
    if kind == "siglip":
        return transformers.SiglipModel(
            transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
        )
    return transformers.Dinov2Model(transformers.Dinov2Config(**VISION))


def save_model(kind: str, folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    model_of(kind).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "deer", "on", "the", "road", "at", "night"]
    tokens = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(kind, root / kind) for kind in ("clip", "siglip", "dino")}


@pytest.fixture
def predictor(store: Store, model: Ref) -> TorchPredictor:
    return load_checkpoint(store, model)


def images(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (40 + 5 * n, 60, 3)).astype(np.uint8) for n in range(count)]


@pytest.mark.parametrize(("kind", "width"), [("clip", 8), ("siglip", 16), ("dino", 16)])
def test_a_model_of_hugging_face_gives_its_own_vectors(
    folders: dict[str, Path], kind: str, width: int
) -> None:
    encoder = HuggingFaceEncoder(folders[kind])
    vectors = encoder.encode(images())
    assert vectors.shape == (3, width)
    batch = torch.from_numpy(np.stack([encoder.image_preprocessing.apply(p) for p in images()]))
    own = model_of(kind).eval()
    with torch.inference_mode():
        pooled = (
            own(pixel_values=batch) if kind == "dino" else own.vision_model(pixel_values=batch)
        ).pooler_output
        expected = own.visual_projection(pooled) if kind == "clip" else pooled
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)


def test_preprocessing_is_that_of_transformers(folders: dict[str, Path]) -> None:
    from transformers import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil.from_pretrained(folders["clip"])
    ours = read_preprocessor_config(folders["clip"] / "preprocessor_config.json")
    image = images()[2]
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours.apply(image), expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "width"), [("clip", 8), ("siglip", 16)])
def test_texts_and_images_share_one_space(folders: dict[str, Path], kind: str, width: int) -> None:
    encoder = HuggingFaceEncoder(folders[kind])
    assert encoder.reads_text
    one, other = encoder.encode_text(["a deer on the road", "night"])
    assert one.shape == (width,)
    assert not np.allclose(one, other)
    np.testing.assert_allclose(encoder.encode_text(["night"])[0], other, atol=1e-5)


def test_a_model_without_a_text_tower_says_so(folders: dict[str, Path]) -> None:
    with pytest.raises(ParameterError, match="no text tower") as caught:
        HuggingFaceEncoder(folders["dino"]).encode_text(["deer"])
    assert "CLIP or SigLIP" in str(caught.value.hint)


def test_a_pass_with_a_detectors_boxes(
    workspace: Workspace, dataset: Dataset, folders: dict[str, Path], predictor: TorchPredictor
) -> None:
    boxes = BoxSource(predictor, "a" * 64)
    encoder = HuggingFaceEncoder(folders["dino"], boxes, grid=((2, 1), (3, 2)))
    found = embed(workspace, encoder, dataset.frames[:6])
    assert found.vectors.shape == (6, 16)
    assert found.class_names == predictor.classes
    assert found.object_vectors.shape == (len(found.boxes), 16)
    assert len(found.boxes) > 0
    assert found.entropy.min() > 0
    assert found.tiles.per_frame == 8
    assert found.tiles.vectors.shape == (6 * 8, 16)
    np.testing.assert_allclose(found.tiles.boxes[0], [0, 0, SIZE[0] / 2, SIZE[1]])
    np.testing.assert_allclose(found.tiles.boxes[7], [SIZE[0] * 2 / 3, SIZE[1] / 2, *SIZE])
    alone = embed(workspace, HuggingFaceEncoder(folders["dino"]), dataset.frames[:6])
    assert len(alone.boxes) == 0
    assert alone.preprocessing != found.preprocessing  # the detector is part of the identity
    np.testing.assert_allclose(alone.vectors, found.vectors, atol=1e-2)


def test_other_weights_are_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = HuggingFaceEncoder(folders["dino"]).model
    model_of("dino").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    assert HuggingFaceEncoder(tmp_path).model == first
    other = model_of("dino")
    nn.init.ones_(other.layernorm.bias)
    other.save_pretrained(tmp_path)
    assert HuggingFaceEncoder(tmp_path).model != first


def test_folders_without_a_usable_model_are_rejected(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        HuggingFaceEncoder("/no/such/folder")
    with pytest.raises(DataError, match=r"config.json and \*.safetensors"):
        HuggingFaceEncoder(tmp_path)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((folders["dino"] / "config.json").read_text())
    torch.save(model_of("dino").state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match="safetensors"):
        HuggingFaceEncoder(pickled)
    invalid = save_model("dino", tmp_path / "invalid")
    (invalid / "preprocessor_config.json").write_text("{}")
    with pytest.raises(DataError, match="image_mean"):
        HuggingFaceEncoder(invalid)


def test_an_unreachable_hub_is_a_service_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(name: str, **_: object) -> str:
        raise OSError(f"cannot reach the hub for {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ServiceError, match="cannot download"):
        HuggingFaceEncoder("openai/clip-vit-base-patch32")


class HalfMeans(nn.Module):
    """Mean colour of each half: a network whose output can be computed by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., :8].mean((2, 3)), x[..., 8:].mean((2, 3))], dim=1)


SPEC = ImagePreprocessing(size=(16, 12), resample="bilinear")


def export_onnx(path: Path, *, batch: int | None, metadata: bool) -> Path:
    sample = torch.zeros(batch or 2, 3, 12, 16)
    dynamic = None if batch else {"x": {0: torch.export.Dim("n")}}
    program = torch.onnx.export(
        HalfMeans().eval(), (sample,), dynamo=True, dynamic_shapes=dynamic, verbose=False
    )
    assert program is not None
    model = program.model_proto
    if metadata:
        onnx.helper.set_model_props(model, {ONNX_METADATA_KEY: SPEC.model_dump_json()})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("batch", [None, 4])
def test_an_onnx_file_with_its_preprocessing(tmp_path: Path, batch: int | None) -> None:
    encoder = OnnxEncoder(export_onnx(tmp_path / "a.onnx", batch=batch, metadata=True))
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 16:] = [255, 0, 51]
    vectors = encoder.encode([image] * 5)
    assert vectors.shape == (5, 6)
    np.testing.assert_allclose(vectors[4, 3:], [1, 0, 0.2], atol=0.08)
    np.testing.assert_allclose(vectors[4, :3], [0, 0, 0], atol=0.08)


def test_onnx_files_that_cannot_be_used(tmp_path: Path) -> None:
    bare = export_onnx(tmp_path / "bare.onnx", batch=None, metadata=False)
    with pytest.raises(DataError, match="preprocessing of this network is missing"):
        OnnxEncoder(bare)
    assert OnnxEncoder(bare, preprocessing=SPEC).encode([np.zeros((9, 9, 3), np.uint8)]).any() == 0
    with pytest.raises(DataError, match="does not match the preprocessing"):
        OnnxEncoder(bare, preprocessing=ImagePreprocessing(size=(32, 32)))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(DataError, match="cannot load"):
        OnnxEncoder(tmp_path / "junk.onnx")
    with pytest.raises(DataError, match="cannot load"):
        OnnxEncoder(tmp_path / "none.onnx")
