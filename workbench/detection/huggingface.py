"""Detection models of the transformers library: RT-DETRv2, D-FINE, DETR and others.

Models of suppliers are recorded with origin, revision, licence and the digest of their weights, and
refused without a licence. Only safetensors are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from workbench.core import digest
from workbench.core.errors import DataError, VerificationError
from workbench.core.parsing import parse_yaml
from workbench.detection.config import HUGGING_FACE, DetectorConfig, GroundTruthBatch, Losses
from workbench.detection.preprocessing import Preprocessing
from workbench.records.model_types import Supplier

__all__ = ["HUB_NAMES", "load_pretrained", "pretrained_preprocessing"]

HUB_NAMES = {
    "rtdetr-v2-r18": "PekingU/rtdetr_v2_r18vd",
    "dfine-s": "ustc-community/dfine-small-coco",
}
"""Short names of models on the hub that were trained on COCO."""

_HUB_FILES = ["*.json", "*.safetensors", "README.md", "LICENSE*"]
_SOFTMAX_MODEL_TYPES = ("detr", "table-transformer", "yolos")
"""Model types with one softmax over the classes and "no object"; the others use sigmoids."""
_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError)
_IGNORED_CONFIG_KEYS = (
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
)


class HuggingFaceDetector(nn.Module):
    """A model of the transformers library as a `DetectionModel`.

    Its losses know neither ignore regions nor label weights: an object in an ignore region counts
    as background, and every label counts fully.
    """

    def __init__(self, config: DetectorConfig, network: Any, supplier: Supplier | None) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.supplier = supplier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Float32 ``[n, 3, height, width]`` to ``logits`` and ``boxes``, see `decode_queries`."""
        output = self.network(pixel_values=images)
        return output.logits, output.pred_boxes

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the encoder ``[n, c, height/stride, width/stride]``, finest first."""
        return self.features_and_outputs(images)[0]

    def features_and_outputs(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Feature maps and raw outputs from one forward pass."""
        output = self.network(pixel_values=images)
        last = output.encoder_last_hidden_state
        maps = last if isinstance(last, list | tuple) else [last]
        height, width = images.shape[2:]
        features = tuple(m if m.ndim == 4 else sequence_to_map(m, height, width) for m in maps)
        return features, (output.logits, output.pred_boxes)

    def losses(self, images: Tensor, truth: GroundTruthBatch) -> Losses:
        """The loss of the library, and its parts for boxes and classes."""
        width, height = self.config.network["size"]
        side = torch.tensor([width, height] * 2, dtype=torch.float32, device=images.device)
        labels = []
        for row, real in enumerate(truth.real > 0):
            corners = (truth.boxes[row][real] / side).clamp(0, 1)
            centre = (corners[:, :2] + corners[:, 2:]) / 2
            boxes = torch.cat([centre, corners[:, 2:] - corners[:, :2]], dim=1)
            labels.append({"class_labels": truth.classes[row][real], "boxes": boxes})
        output = self.network(pixel_values=images, labels=labels)
        parts = {"box": images.new_zeros(()), "cls": images.new_zeros(())}
        for name, value in output.loss_dict.items():
            if name in ("loss_bbox", "loss_giou"):
                parts["box"] = parts["box"] + value.detach()
            elif name in ("loss_ce", "loss_vfl", "loss_focal"):
                parts["cls"] = parts["cls"] + value.detach()
        return Losses(output.loss, parts["cls"], parts["box"])


def load_pretrained(
    source: str | Path,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    class_of: Callable[[str], str | None] | None = None,
    licence: str | None = None,
    revision: str | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> HuggingFaceDetector:
    """Load a pretrained model for fine-tuning to ``classes``.

    Classes that the model already knows keep their weights: it detects them before any training.

    Args:
        source: A folder with ``config.json`` and ``model.safetensors``, or OWNER/NAME on the hub.
        classes: Class names; those that the model does not know are initialised anew.
        preprocessing: Gives the size of the input, see `pretrained_preprocessing`.
        class_of: The class that one of the model's own class names stands for, such as
            `LabelSchema.class_of`; by default the class of the same name.
        licence: Needed only where the model's files do not name one.
        revision: Commit, tag or branch on the hub.
        fresh: Use the architecture with new weights.
        seed: For the weights that are initialised anew.

    Raises:
        DataError: The model is missing or invalid, has no licence, or no weights as safetensors.
    """
    transformers = _import_transformers()
    folder, origin, commit = _resolve_model_source(source, revision)
    supplier = _supplier_record(folder, origin, commit, licence, weights=not fresh)
    names = dict(enumerate(classes))
    safe = {"local_files_only": True, "trust_remote_code": False}
    factory = transformers.AutoModelForObjectDetection
    try:
        network_config = transformers.AutoConfig.from_pretrained(
            folder,
            **safe,
            id2label=names,
            label2id={name: number for number, name in names.items()},
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = factory.from_config(network_config, trust_remote_code=False)
            if not fresh:
                trained = factory.from_pretrained(
                    folder, use_safetensors=True, dtype=torch.float32, **safe
                )
                _transfer_weights(trained, network, class_of or str, factory)
    except (*_LOAD_ERRORS, SafetensorError) as error:
        raise DataError(
            f"detection model cannot be loaded: {_first_line(error)}",
            where=origin,
            hint="Needed are config.json of a detection model and model.safetensors; timm "
            "backbones are not supported",
        ) from error
    config = DetectorConfig(
        architecture=HUGGING_FACE,
        classes=tuple(classes),
        network={
            "config": _network_config(network.config),
            "scoring": _score_function(network.config),
            "size": [preprocessing.width, preprocessing.height],
        },
    )
    return HuggingFaceDetector(config, network, supplier)


def _transfer_weights(
    trained: Any, network: Any, class_of: Callable[[str], str | None], factory: Any
) -> None:
    """Copy all weights; those of a class from the classes of ``trained`` that stand for it.

    Where several do (dog and horse for animal), their mean is copied. Classes that ``trained`` does
    not know keep their initial weights.
    """
    before, after = trained.config.id2label, network.config.id2label
    rows = {
        new: [old for old, source in before.items() if class_of(source) == name]
        for new, name in after.items()
    }
    other = network
    if len(before) == len(after):  # shapes would not show which weights belong to classes
        config = copy.deepcopy(trained.config)
        config.num_labels = len(before) + 1
        other = factory.from_config(config, trust_remote_code=False)
    shapes = {name: value.shape for name, value in other.state_dict().items()}
    weights, own = trained.state_dict(), network.state_dict()
    for name, value in weights.items():
        if value.shape == shapes[name]:
            continue
        merged = own[name].clone()
        for new, old in rows.items():
            if old:
                merged[new] = value[old].mean(dim=0)
        merged[len(after) :] = value[len(before) :]  # "no object", padding
        weights[name] = merged
    network.load_state_dict(weights)


def pretrained_preprocessing(source: str | Path, *, width: int, height: int) -> Preprocessing:
    """Preprocessing with the scale, mean and std that a pretrained model was trained with.

    Images are letterboxed, although most of these models were trained on stretched images:
    fine-tuning adapts to it, and objects keep their shape.

    Args:
        source: A folder, or OWNER/NAME on the hub.
        width: Of the network input, in pixels.
        height: Of the network input, in pixels.
    """
    folder, _, _ = _resolve_model_source(source, None)
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return Preprocessing(width=width, height=height)
    pretrained = json.loads(path.read_text())
    values: dict[str, Any] = {"width": width, "height": height}
    values["scale"] = (
        pretrained.get("rescale_factor", 1 / 255) if pretrained.get("do_rescale", True) else 1.0
    )
    if pretrained.get("do_normalize", True) and "image_mean" in pretrained:
        values |= {"mean": tuple(pretrained["image_mean"]), "std": tuple(pretrained["image_std"])}
    else:
        values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Preprocessing.model_validate(values)


def build_network(config: DetectorConfig) -> HuggingFaceDetector:
    """The architecture recorded in a checkpoint, with new weights."""
    transformers = _import_transformers()
    settings = json.loads(config.network["config"])
    settings["id2label"] = dict(enumerate(config.classes))
    network_config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    network = transformers.AutoModelForObjectDetection.from_config(network_config)
    return HuggingFaceDetector(config, network, None)


def _import_transformers() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # torchao warns on every import that CPUs lack its kernels.
    logging.getLogger("torchao").setLevel(logging.CRITICAL)
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
    return library


def sequence_to_map(sequence: Tensor, height: int, width: int) -> Tensor:
    """Reshape encoder tokens ``[n, cells, c]``, row by row, to a map ``[n, c, rows, columns]``."""
    cells = sequence.shape[1]
    for stride in (2**power for power in range(2, 7)):
        rows, columns = -(-height // stride), -(-width // stride)
        if rows * columns == cells:
            return sequence.transpose(1, 2).reshape(len(sequence), -1, rows, columns)
    raise DataError(
        f"encoder output of {cells} cells does not fit an input of {width} x {height} pixels",
        hint="Choose an input size in multiples of 32 pixels",
    )


def _network_config(config: Any) -> str:
    """The settings of the library that shape the network, as JSON text.

    As text, because the library distinguishes 1 from 1.0 and canonical JSON does not.
    """
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for name in (*_IGNORED_CONFIG_KEYS, "id2label", "label2id"):  # `classes` has the class names
        values.pop(name, None)
    return json.dumps(values, sort_keys=True)


def _score_function(config: Any) -> str:
    shared = config.model_type in _SOFTMAX_MODEL_TYPES or not getattr(
        config, "use_focal_loss", True
    )
    return "softmax" if shared else "sigmoid"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _resolve_model_source(source: str | Path, revision: str | None) -> tuple[Path, str, str]:
    """Folder, origin and commit of a model; a model on the hub is downloaded.

    Raises:
        DataError: The folder does not exist, or the download failed.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder, f"folder:{folder.resolve().name}", ""
    if folder.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
        raise DataError(
            "model folder does not exist",
            where=source,
            hint="Give a folder, or OWNER/NAME of a model on the hub",
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    try:
        local = huggingface_hub.snapshot_download(
            str(source), revision=revision, allow_patterns=_HUB_FILES
        )
    except Exception as error:  # the hub's errors, the network's and the disk's share no base
        raise DataError(
            f"model cannot be downloaded from the hub: {_first_line(error)}",
            where=source,
            hint="Check the name and the connection, or give a folder with the model",
        ) from error
    return Path(local), f"hub:{source}", Path(local).name


def _supplier_record(
    folder: Path, origin: str, commit: str, licence: str | None, *, weights: bool = True
) -> Supplier:
    """The record of a supplier's model.

    Args:
        folder: With the model's files.
        origin: Where it comes from.
        commit: Revision on the hub.
        licence: Needed only where the model's files do not name one.
        weights: Whether its weights are used and must exist.

    Raises:
        DataError: No licence, or no weights as safetensors.
    """
    named = licence or find_licence(folder)
    if not named:
        raise DataError(
            "model has no licence, so it must not be used",
            where=origin,
            hint="Add `license:` to the head of its README or a LICENSE file, or pass licence=…",
        )
    files = sorted(folder.glob("*.safetensors"))
    if weights and not files:
        raise DataError(
            "model has no weights as safetensors",
            where=origin,
            hint="Other formats can run code when they are loaded: convert the weights first",
        )
    sums = {path.name: digest.of_file(path) for path in files} if weights else {}
    return Supplier(
        origin=origin,
        revision=commit,
        licence=named,
        weights=digest.of_json(sums) if sums else None,
    )


def find_licence(folder: Path) -> str | None:
    """Licence in the head of the README or in a licence file; None without either."""
    readme = folder / "README.md"
    if readme.exists():
        parts = readme.read_text(errors="replace").split("---", 2)
        if len(parts) == 3 and not parts[0].strip():
            try:
                head = parse_yaml(parts[1])
            except (yaml.YAMLError, VerificationError):
                head = None
            if isinstance(head, dict):
                named = str(head.get("license") or "").strip()
                named = str(head.get("license_name") or named) if named == "other" else named
                if named:
                    return named
    for path in sorted(folder.glob("LICEN[SC]E*")):
        first = next((line.strip() for line in path.read_text().splitlines() if line.strip()), "")
        if first:
            return f"{path.name}: {first}"
    return None
