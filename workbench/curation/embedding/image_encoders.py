"""Encoders of single images: Hugging Face vision models and ONNX files."""

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
from workbench.core.errors import DataError, ParameterError, ServiceError
from workbench.curation.embedding.encoders import (
    EncoderOutput,
    TileGrid,
    summed_entropy,
    tile_boxes,
    top_boxes,
)
from workbench.detection.models import Detections
from workbench.detection.predictor import Predictor
from workbench.detection.preprocessing import PerChannel, Pixels
from workbench.records.base import FrozenModel

DEFAULT_TILES: TileGrid = ((2, 2), (4, 3))
"""Each tile is a picture of its own to such an encoder, so there are few of them."""

_BATCH_SIZE = 64
"""Pictures that go through the network at once."""

_RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_PositiveInt = Annotated[int, Field(gt=0)]


class ImagePreprocessing(FrozenModel):
    """How a picture becomes the network's input: resize, crop the middle, scale, normalise.

    Attributes:
        size: Width and height after resizing, pixels; with ``keep_shape``, the first is the length
            of the shorter side.
        crop: Width and height cut out of the middle; None keeps all.
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
        picture = Image.fromarray(np.ascontiguousarray(image))
        size = self.size
        if self.keep_shape:
            share = self.size[0] / min(picture.size)
            size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
        picture = picture.resize(size, Image.Resampling[self.resample.upper()])
        if self.crop is not None and picture.size != self.crop:
            left = (picture.width - self.crop[0]) // 2
            top = (picture.height - self.crop[1]) // 2
            picture = picture.crop((left, top, left + self.crop[0], top + self.crop[1]))
        planes = np.moveaxis(np.asarray(picture), -1, 0).astype(np.float32) * np.float32(self.scale)
        shift, spread = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        done: NDArray[np.float32] = (planes - shift) / spread
        return done


def read_preprocessor_config(path: Path) -> ImagePreprocessing:
    """The contract in a ``preprocessor_config.json``, as Hugging Face's vision models have it.

    Raises:
        DataError: The file cannot be read, or asks for what is not built.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        size, keep = _parse_size(config.get("size", 224))
        plain = config.get("do_normalize", True)
        return ImagePreprocessing(
            size=size,
            keep_shape=keep,
            crop=_parse_size(config["crop_size"])[0]
            if config.get("do_center_crop")
            else _center_crop(size, keep),
            resample=_RESAMPLE_NAMES[config.get("resample", 2)],
            scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
            mean=config["image_mean"] if plain else (0, 0, 0),
            std=config["image_std"] if plain else (1, 1, 1),
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"preprocessing cannot be read: {type(error).__name__}: {error}",
            where=path,
            hint="Give the encoder an ImagePreprocessing of your own",
        ) from error


def _parse_size(value: Any) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether only the shorter side is meant."""
    if isinstance(value, dict) and "shortest_edge" in value:
        return (value["shortest_edge"],) * 2, True
    if isinstance(value, dict):
        return (value["width"], value["height"]), False
    return (int(value),) * 2, False


def _center_crop(size: tuple[int, int], keep_shape: bool) -> tuple[int, int] | None:
    """Inputs of one shape go into one batch, so what keeps its shape is cut in any case."""
    return size if keep_shape else None


@dataclass(frozen=True)
class BoxSource:
    """Where an encoder that finds no boxes has them from: a detector, and the digest of it."""

    predictor: Predictor
    identity: str


class ImageEncoder:
    """What encoders of single pictures share: all but the network.

    Args:
        preprocessing: How a picture becomes input.
        boxes: Whose boxes get a vector each; None gives none, and no entropy.
        grid: Tiles, (columns, rows) at each scale.
    """

    def __init__(
        self,
        model: str,
        preprocessing: ImagePreprocessing,
        boxes: BoxSource | None = None,
        grid: TileGrid = DEFAULT_TILES,
    ) -> None:
        self.model = model
        self.image_preprocessing = preprocessing
        self.boxes = boxes
        self.grid = grid

    @cached_property
    def preprocessing(self) -> str:
        """Digest of the preprocessing and of whose boxes are cut out."""
        about = self.image_preprocessing.model_dump(mode="json")
        return digest.of_json({**about, "boxes": self.boxes and self.boxes.identity})

    @property
    def classes(self) -> tuple[str, ...]:
        return self.boxes.predictor.classes if self.boxes else ()

    def encode(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """One vector a picture, float32 ``[n, d]``."""
        if not images:
            raise ParameterError("there is nothing to encode")
        parts = []
        for start in range(0, len(images), _BATCH_SIZE):
            chunk = images[start : start + _BATCH_SIZE]
            batch = np.stack([self.image_preprocessing.apply(image) for image in chunk])
            parts.append(self.vectors(batch))
        return np.concatenate(parts)

    def vectors(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network: float32 ``[n, 3, height, width]`` to ``[n, d]``."""
        raise NotImplementedError

    def look(self, images: Sequence[Pixels]) -> EncoderOutput:
        found = [_NO_DETECTIONS] * len(images)
        entropy = np.zeros(len(images), np.float32)
        if self.boxes is not None:
            everything = self.boxes.predictor.predict(images)
            entropy = np.array([summed_entropy(one.scores) for one in everything], np.float32)
            found = [top_boxes(one) for one in everything]
        sizes = np.array([(image.shape[1], image.shape[0]) for image in images])
        tiles = tile_boxes(self.grid, sizes)
        crops: list[Pixels] = []
        for image, one, parts in zip(images, found, tiles, strict=True):
            crops += [image, *(_crop(image, box) for box in (*one.boxes, *parts))]
        vectors = self.encode(crops)
        counts = np.array([1 + len(one) + tiles.shape[1] for one in found])
        each = np.split(vectors, np.cumsum(counts)[:-1])
        return EncoderOutput(
            frames=np.stack([own[0] for own in each]),
            entropy=entropy,
            found=found,
            objects=[own[1 : 1 + len(one)] for own, one in zip(each, found, strict=True)],
            tiles=np.stack([own[1 + len(one) :] for own, one in zip(each, found, strict=True)]),
        )


_NO_DETECTIONS = Detections(
    np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64)
)


def _crop(image: Pixels, box: NDArray[np.float32]) -> Pixels:
    """The pixels that a box touches, at least one."""
    height, width = image.shape[:2]
    x1, y1 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    x2, y2 = max(x1 + 1, int(np.ceil(box[2]))), max(y1 + 1, int(np.ceil(box[3])))
    return image[y1:y2, x1:x2]


# ---- Any vision model of Hugging Face as an encoder: CLIP, SigLIP, DINOv2 and their like.
#
# Weights are read from safetensors only, code of a model's own is never run, and with a folder
# nothing is asked of the network.


_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class HuggingFaceEncoder(ImageEncoder):
    """A model from a folder or from the hub.

    The vector is the model's own picture embedding where it has one (CLIP, SigLIP: the space that
    texts share), else its pooled output, else the mean of its tokens.

    Args:
        source: A folder, or a name on the hub, optionally ``NAME@REVISION``.
        boxes: Whose boxes get a vector each.
        grid: Tiles.
        preprocessing: Instead of the model's own.

    Raises:
        DataError: The folder holds no model that can be read.
        ServiceError: The hub does not answer.
    """

    def __init__(
        self,
        source: str | Path,
        boxes: BoxSource | None = None,
        grid: TileGrid = DEFAULT_TILES,
        preprocessing: ImagePreprocessing | None = None,
    ) -> None:
        self.folder = _model_folder(source)
        weights = sorted(self.folder.glob("*.safetensors"))
        if not weights or not (self.folder / "config.json").exists():
            raise DataError(
                "no model in this folder: config.json and *.safetensors are needed",
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
        """Whether texts and pictures share a space in this model."""
        return hasattr(self._model, "get_text_features")

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector a text, float32 ``[n, d]``, in the space of the pictures.

        Raises:
            ParameterError: The model has no text tower.
            DataError: Its tokenizer is not in the folder.
        """
        import torch

        if not self.reads_text:
            raise ParameterError(
                "this model reads no text",
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
            # Padded to the full length: SigLIP was trained so, and CLIP's mask makes it equal.
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
                f"the tokenizer cannot be used: {error}",
                where=self.folder,
                hint="Its files belong beside the model's",
            ) from error
        tokens.pop("token_type_ids", None)
        return tokens


def _model_folder(source: str | Path) -> Path:
    """The model's folder; a name is fetched from the hub, or found in its cache."""
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
    except Exception as error:  # the hub's errors share no base that is public
        raise ServiceError(
            f"the model cannot be fetched: {(str(error).splitlines() or [repr(error)])[0]}",
            where=source,
            hint="Give the folder of a model, or a name on the hub where it can be reached",
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
            hint="It has to be a vision model that AutoModel knows",
        ) from error
    return model.float().eval()


def _to_vectors(output: Any) -> NDArray[np.float32]:
    """One vector a row out of whatever form a model answers in."""
    if not hasattr(output, "ndim"):
        pooled = getattr(output, "pooler_output", None)
        output = output.last_hidden_state.mean(1) if pooled is None else pooled
    vectors: NDArray[np.float32] = output.flatten(1).float().numpy()
    return vectors


# ---- Any ONNX file that turns pictures into vectors, in plain ONNX Runtime.


ONNX_METADATA_KEY = "image_preprocessing"
"""Name of the file's metadata entry that holds its `ImagePreprocessing` as JSON."""


class OnnxEncoder(ImageEncoder):
    """A network in a file: float32 ``[n, 3, height, width]`` in, vectors out.

    The first output is taken: ``[n, d]``, or maps ``[n, d, h, w]``, or tokens ``[n, t, d]``, of
    which the mean is the vector.

    Args:
        path: The file.
        preprocessing: Where the file's metadata does not tell.
        threads: For one operator; 1 gives the same bits everywhere on one machine class.

    Raises:
        DataError: No ONNX file, or nothing says how a picture becomes its input.
    """

    def __init__(
        self,
        path: Path,
        boxes: BoxSource | None = None,
        grid: TileGrid = DEFAULT_TILES,
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
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
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
        wanted = [self._batch, 3, height, width]
        fits = len(shape) == 4 and all(
            not isinstance(there, int) or there == size
            for there, size in zip(shape, wanted, strict=True)
        )
        if not fits:
            raise DataError(
                f"its input is {shape}, its preprocessing gives {['n', *wanted[1:]]}",
                where=path,
                hint="Give the ImagePreprocessing that the network was trained with",
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
            "nothing says how a picture becomes this network's input",
            where=path,
            hint=f"Give an ImagePreprocessing, or put it as JSON into the file's metadata under "
            f"{ONNX_METADATA_KEY!r}",
        )
    try:
        return ImagePreprocessing.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"its {ONNX_METADATA_KEY} cannot be read: {error}", where=path) from error
