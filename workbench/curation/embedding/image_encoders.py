"""Encoders of single images: Hugging Face vision models and ONNX files.

Whole frames, the boxes of a detector and tiles are embedded as crops. Hugging Face weights are
read from safetensors only, a model's own code is never run, and a local folder needs no network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError

from workbench.core import digest
from workbench.core.errors import DataError, ParameterError, ServiceError, WorkbenchError
from workbench.curation.embedding.encoders import (
    EncoderOutput,
    TileGrid,
    summed_entropy,
    tile_boxes,
    top_boxes,
)
from workbench.detection.bundles import refuse_external_weights
from workbench.detection.families import Detections
from workbench.detection.predictor import Predictor
from workbench.detection.preprocessing import PerChannel, Pixels
from workbench.records.base import FrozenModel

__all__ = ["BoxSource", "HuggingFaceEncoder", "OnnxEncoder"]

_DEFAULT_TILES: TileGrid = ((2, 2), (4, 3))
"""Few tiles: each one is an image of its own to these encoders."""

_BATCH_SIZE = 64
"""Images per forward pass."""

_RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_PositiveInt = Annotated[int, Field(gt=0)]
_NO_DETECTIONS = Detections(
    np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64)
)
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
ONNX_METADATA_KEY = "image_preprocessing"
"""Metadata entry of an ONNX file that holds its `ImagePreprocessing` as JSON."""


class ImagePreprocessing(FrozenModel):
    """How an image becomes the network's input: resize, centre crop, scale, normalise.

    Attributes:
        size: Width and height after resizing, pixels; with ``keep_shape``, the first is the length
            of the shorter side.
        crop: Width and height of the centre crop; None keeps all.
        scale: Factor of 8-bit values, before ``mean`` and ``std`` (RGB).
    """

    size: tuple[_PositiveInt, _PositiveInt]
    keep_shape: bool = False
    crop: tuple[_PositiveInt, _PositiveInt] | None = None
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic"] = "bicubic"
    scale: float = 1 / 255
    mean: PerChannel = (0.0, 0.0, 0.0)
    std: PerChannel = (1.0, 1.0, 1.0)

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the network's input, pixels."""
        return self.crop or self.size

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """RGB uint8 ``[height, width, 3]`` to float32 ``[3, height, width]``."""
        resized = Image.fromarray(np.ascontiguousarray(image))
        size = self.size
        if self.keep_shape:
            ratio = self.size[0] / min(resized.size)
            size = (max(1, round(resized.width * ratio)), max(1, round(resized.height * ratio)))
        resized = resized.resize(size, Image.Resampling[self.resample.upper()])
        if self.crop is not None and resized.size != self.crop:
            left = (resized.width - self.crop[0]) // 2
            top = (resized.height - self.crop[1]) // 2
            resized = resized.crop((left, top, left + self.crop[0], top + self.crop[1]))
        planes = np.moveaxis(np.asarray(resized), -1, 0).astype(np.float32) * np.float32(self.scale)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        normalised: NDArray[np.float32] = (planes - mean) / std
        return normalised


def read_preprocessor_config(path: Path) -> ImagePreprocessing:
    """Read a ``preprocessor_config.json`` of a Hugging Face vision model.

    Raises:
        DataError: The file cannot be read, or asks for an unsupported operation.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        size, keep = _parse_size(config.get("size", 224))
        crop = size if keep else None  # images of one batch must have one shape
        if config.get("do_center_crop"):
            crop = _parse_size(config["crop_size"])[0]
        normalise = config.get("do_normalize", True)
        return ImagePreprocessing(
            size=size,
            keep_shape=keep,
            crop=crop,
            resample=_RESAMPLE_NAMES[config.get("resample", 2)],
            scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
            mean=config["image_mean"] if normalise else (0, 0, 0),
            std=config["image_std"] if normalise else (1, 1, 1),
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"invalid preprocessor config: {type(error).__name__}: {error}",
            where=path,
            hint="Pass an ImagePreprocessing to the encoder",
        ) from error


def _parse_size(value: Any) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether only the shorter side is given."""
    if isinstance(value, dict) and "shortest_edge" in value:
        return (value["shortest_edge"],) * 2, True
    if isinstance(value, dict):
        return (value["width"], value["height"]), False
    return (int(value),) * 2, False


@dataclass(frozen=True)
class BoxSource:
    """The detector whose boxes are embedded.

    Attributes:
        predictor: Predicts the boxes.
        identity: Digest of the detector; part of the embedding's identity.
    """

    predictor: Predictor
    identity: str


class ImageEncoder:
    """Base class of encoders that see one image at a time; subclasses provide `vectors`.

    Args:
        model: Digest of the weights.
        preprocessing: How an image becomes input.
        boxes: Detector whose boxes get a vector each; None gives no boxes and zero entropy.
        grid: Tiles, (columns, rows) at each scale.
    """

    def __init__(
        self,
        model: str,
        preprocessing: ImagePreprocessing,
        boxes: BoxSource | None = None,
        grid: TileGrid = _DEFAULT_TILES,
    ) -> None:
        self.model = model
        self.image_preprocessing = preprocessing
        self.boxes = boxes
        self.grid = grid

    @cached_property
    def preprocessing(self) -> str:
        """Digest of the preprocessing and of the detector whose boxes are cropped."""
        settings = self.image_preprocessing.model_dump(mode="json")
        return digest.of_json({**settings, "boxes": self.boxes and self.boxes.identity})

    @property
    def classes(self) -> tuple[str, ...]:
        return self.boxes.predictor.classes if self.boxes else ()

    def encode(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """One vector per image, float32 ``[n, d]``.

        Raises:
            ParameterError: No images are given.
        """
        if not images:
            raise ParameterError("no images to encode")
        parts = []
        for start in range(0, len(images), _BATCH_SIZE):
            chunk = images[start : start + _BATCH_SIZE]
            batch = np.stack([self.image_preprocessing.apply(image) for image in chunk])
            parts.append(self.vectors(batch))
        return np.concatenate(parts)

    def vectors(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network: float32 ``[n, 3, height, width]`` to ``[n, d]``."""
        raise NotImplementedError

    def embed(self, images: Sequence[Pixels]) -> EncoderOutput:
        """Embed each image, its boxes and its tiles as crops."""
        detections = [_NO_DETECTIONS] * len(images)
        entropy = np.zeros(len(images), np.float32)
        if self.boxes is not None:
            predicted = self.boxes.predictor.predict(images)
            entropy = np.array([summed_entropy(one.scores) for one in predicted], np.float32)
            detections = [top_boxes(one) for one in predicted]
        sizes = np.array([(image.shape[1], image.shape[0]) for image in images])
        tiles = tile_boxes(self.grid, sizes)
        crops: list[Pixels] = []
        for image, one, boxes in zip(images, detections, tiles, strict=True):
            crops += [image, *(_crop(image, box) for box in (*one.boxes, *boxes))]
        counts = np.array([1 + len(one) + tiles.shape[1] for one in detections])
        parts = np.split(self.encode(crops), np.cumsum(counts)[:-1])
        pairs = list(zip(parts, detections, strict=True))
        return EncoderOutput(
            frames=np.stack([part[0] for part in parts]),
            entropy=entropy,
            detections=detections,
            objects=[part[1 : 1 + len(one)] for part, one in pairs],
            tiles=np.stack([part[1 + len(one) :] for part, one in pairs]),
        )


def _crop(image: Pixels, box: NDArray[np.float32]) -> Pixels:
    """The pixels that a box touches, at least one."""
    height, width = image.shape[:2]
    x1, y1 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    x2, y2 = max(x1 + 1, int(np.ceil(box[2]))), max(y1 + 1, int(np.ceil(box[3])))
    return image[y1:y2, x1:x2]


class HuggingFaceEncoder(ImageEncoder):
    """A Hugging Face vision model, such as CLIP, SigLIP or DINOv2, from a folder or the hub.

    The vector is the model's image embedding where it has one (CLIP, SigLIP: the space shared with
    texts), else its pooled output, else the mean of its tokens.

    Args:
        source: A folder, or a name on the hub, optionally ``NAME@REVISION``.
        boxes: Detector whose boxes get a vector each.
        grid: Tiles.
        preprocessing: Overrides the model's own.

    Raises:
        DataError: The folder holds no readable model.
        ServiceError: The hub is unreachable.
    """

    def __init__(
        self,
        source: str | Path,
        boxes: BoxSource | None = None,
        grid: TileGrid = _DEFAULT_TILES,
        preprocessing: ImagePreprocessing | None = None,
    ) -> None:
        self.folder = _model_folder(source)
        weights = sorted(self.folder.glob("*.safetensors"))
        if not weights or not (self.folder / "config.json").exists():
            raise DataError(
                "no model in this folder: config.json and *.safetensors are required",
                where=self.folder,
                hint="Save it with save_pretrained(folder, safe_serialization=True)",
            )
        files = [self.folder / "config.json", *weights]
        name = digest.of_json({file.name: digest.of_file(file) for file in files})
        spec = preprocessing or read_preprocessor_config(self.folder / "preprocessor_config.json")
        super().__init__(name, spec, boxes, grid)
        self._model = _load_model(self.folder)
        self._tokenizer: Any = None

    def vectors(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        pixels = torch.from_numpy(batch)
        with torch.inference_mode():
            if hasattr(self._model, "get_image_features"):
                return _to_vectors(self._model.get_image_features(pixel_values=pixels))
            return _to_vectors(self._model(pixel_values=pixels))

    @property
    def reads_text(self) -> bool:
        """Whether the model embeds texts and images in one space."""
        return hasattr(self._model, "get_text_features")

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector per text, float32 ``[n, d]``, in the space of the images.

        Raises:
            ParameterError: The model has no text tower.
            DataError: The folder has no usable tokenizer.
        """
        import torch

        if not self.reads_text:
            raise ParameterError(
                "this model has no text tower",
                where=self.folder,
                hint="Search by text with CLIP or SigLIP, or by example with --like",
            )
        tokens = self._tokens(list(texts))
        with torch.inference_mode():
            return _to_vectors(self._model.get_text_features(**tokens))

    def _tokens(self, texts: list[str]) -> dict[str, Any]:
        from transformers import AutoTokenizer

        length = self._model.config.text_config.max_position_embeddings
        try:
            self._tokenizer = self._tokenizer or AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True
            )
            # Pad to the full length: SigLIP was trained so, and CLIP masks the padding.
            tokens: dict[str, Any] = dict(
                self._tokenizer(
                    texts,
                    padding="max_length",
                    truncation=True,
                    max_length=length,
                    return_tensors="pt",
                )
            )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"cannot use the tokenizer: {error}",
                where=self.folder,
                hint="Put the tokenizer's files beside the model's",
            ) from error
        tokens.pop("token_type_ids", None)
        return tokens


def _model_folder(source: str | Path) -> Path:
    """The model's folder; a name is downloaded from the hub, or found in its cache."""
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or source.startswith((".", "/")) or source.count("/") > 1:
        raise DataError("no such folder", where=source)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    name, _, revision = str(source).partition("@")
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=list(_HUB_FILES))
        )
    except Exception as error:  # the hub's errors share no public base
        raise ServiceError(
            f"cannot download the model: {(str(error).splitlines() or [repr(error)])[0]}",
            where=source,
            hint="Give the folder of a model, or a name on a hub that is reachable",
        ) from error


def _load_model(folder: Path) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise DataError(
            f"transformers cannot load the model: {(str(error).splitlines() or [''])[0]}",
            where=folder,
            hint="Use a vision model that AutoModel supports",
        ) from error
    return model.float().eval()


def _to_vectors(output: Any) -> NDArray[np.float32]:
    """One vector per row from any form of model output."""
    if not hasattr(output, "ndim"):
        pooled = getattr(output, "pooler_output", None)
        output = output.last_hidden_state.mean(1) if pooled is None else pooled
    vectors: NDArray[np.float32] = output.flatten(1).float().numpy()
    return vectors


class OnnxEncoder(ImageEncoder):
    """A network in an ONNX file: float32 ``[n, 3, height, width]`` to vectors.

    The first output is used: ``[n, d]``, or the mean of maps ``[n, d, h, w]`` or tokens
    ``[n, t, d]``.

    Args:
        path: The file.
        boxes: Detector whose boxes get a vector each.
        grid: Tiles.
        preprocessing: Required where the file's metadata has none.
        threads: Threads per operator; 1 gives equal bits on every machine of one class.

    Raises:
        DataError: Not an ONNX file, or its preprocessing is missing.
    """

    def __init__(
        self,
        path: Path,
        boxes: BoxSource | None = None,
        grid: TileGrid = _DEFAULT_TILES,
        preprocessing: ImagePreprocessing | None = None,
        threads: int = 2,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            data = path.read_bytes()
            refuse_external_weights(data, where=path)
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except WorkbenchError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no public base
            raise DataError(f"ONNX Runtime cannot load the model: {error}", where=path) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        spec = preprocessing or _read_preprocessing(metadata.get(ONNX_METADATA_KEY), path)
        super().__init__(digest.of_bytes(data), spec, boxes, grid)
        first = self._session.get_inputs()[0]
        self._input, self._output = first.name, self._session.get_outputs()[0].name
        self._batch = first.shape[0] if isinstance(first.shape[0], int) else None
        self._check(first.shape, path)

    def _check(self, shape: list[object], path: Path) -> None:
        width, height = self.image_preprocessing.input_size
        expected = [self._batch, 3, height, width]
        fits = len(shape) == 4 and all(
            not isinstance(actual, int) or actual == size
            for actual, size in zip(shape, expected, strict=True)
        )
        if not fits:
            raise DataError(
                f"input shape {shape} does not match the preprocessing: {['n', *expected[1:]]}",
                where=path,
                hint="Pass the ImagePreprocessing that the network was trained with",
            )

    def vectors(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        size = self._batch or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            chunk = batch[start : start + size]
            filled = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
            out = self._session.run([self._output], {self._input: filled})[0][: len(chunk)]
            if out.ndim > 2:
                out = out.mean(axis=tuple(range(2, out.ndim)) if out.ndim == 4 else 1)
            parts.append(out.astype(np.float32))
        return np.concatenate(parts)


def _read_preprocessing(text: str | None, path: Path) -> ImagePreprocessing:
    if text is None:
        raise DataError(
            "preprocessing of this network is missing",
            where=path,
            hint="Pass an ImagePreprocessing, or store it as JSON in the metadata entry "
            f"{ONNX_METADATA_KEY!r}",
        )
    try:
        return ImagePreprocessing.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"invalid metadata {ONNX_METADATA_KEY}: {error}", where=path) from error
