"""Any vision model of Hugging Face as an encoder: CLIP, SigLIP, DINOv2 and their like.

Weights are read from safetensors only, code of a model's own is never run, and with a folder
nothing is asked of the network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.curation.embedding.encoder import Grid
from workbench.curation.embedding.images import (
    TILES,
    BoxSource,
    ImageEncoder,
    ImagePreprocessing,
    from_preprocessor_config,
)
from workbench.errors import DataError, ParameterError, ServiceError

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


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
        grid: Grid = TILES,
        preprocessing: ImagePreprocessing | None = None,
    ) -> None:
        self.folder = _folder(source)
        weights = sorted(self.folder.glob("*.safetensors"))
        if not weights or not (self.folder / "config.json").exists():
            raise DataError(
                "no model in this folder: config.json and *.safetensors are needed",
                where=self.folder,
                hint="Save it with save_pretrained(folder, safe_serialization=True)",
            )
        files = [self.folder / "config.json", *weights]
        name = digest.of_json({file.name: digest.of_file(file) for file in files})
        spec = preprocessing or from_preprocessor_config(self.folder / "preprocessor_config.json")
        super().__init__(name, spec, boxes, grid)
        self._model = _loaded(self.folder)
        self._tokenizer: Any = None

    def vectors(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        pixels = torch.from_numpy(batch)
        with torch.inference_mode():
            if hasattr(self._model, "get_image_features"):
                return _array(self._model.get_image_features(pixel_values=pixels))
            return _array(self._model(pixel_values=pixels))

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
            return _array(self._model.get_text_features(**tokens))

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


def _folder(source: str | Path) -> Path:
    """The model's folder; a name is fetched from the hub, or found in its cache."""
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or source.startswith((".", "/")) or source.count("/") > 1:
        raise DataError("no such folder", where=source)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    name, _, revision = str(source).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's errors share no base that is public
        raise ServiceError(
            f"the model cannot be fetched: {(str(error).splitlines() or [repr(error)])[0]}",
            where=source,
            hint="Give the folder of a model, or a name on the hub where it can be reached",
        ) from error


def _loaded(folder: Path) -> Any:
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


def _array(output: Any) -> NDArray[np.float32]:
    """One vector a row out of whatever form a model answers in."""
    if not hasattr(output, "ndim"):
        pooled = getattr(output, "pooler_output", None)
        output = output.last_hidden_state.mean(1) if pooled is None else pooled
    vectors: NDArray[np.float32] = output.flatten(1).float().numpy()
    return vectors
