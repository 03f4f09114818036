"""Detection models of the transformers library, from a folder or the Hugging Face hub."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from workbench.core import digest
from workbench.core.errors import DataError
from workbench.detection.config import HUGGING_FACE, DetectorConfig, GroundTruthBatch, Losses
from workbench.detection.preprocessing import Preprocessing
from workbench.records.model_types import Supplier

_HUB_FILES = ["*.json", "*.safetensors", "README.md", "LICENSE*"]


def resolve_model_source(source: str | Path, revision: str | None) -> tuple[Path, str, str]:
    """Folder, origin and commit of a model: a folder as it is, a name on the hub fetched.

    Raises:
        DataError: It is neither, or the hub does not answer.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder, f"folder:{folder.resolve().name}", ""
    if folder.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
        raise DataError(
            "there is no such model folder",
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
            f"the model cannot be fetched from the hub: {str(error).splitlines()[0]}",
            where=source,
            hint="Check the name and the connection, or give a folder that holds the model",
        ) from error
    return Path(local), f"hub:{source}", Path(local).name


def supplier_record(
    folder: Path, origin: str, commit: str, licence: str | None, *, weights: bool = True
) -> Supplier:
    """The supplier's part as it is recorded; raises `DataError` without a licence or weights."""
    named = licence or find_licence(folder)
    if not named:
        raise DataError(
            "the supplier's model has no licence: nobody may ship what they may not use",
            where=origin,
            hint="Its README must name one (`license:` at its top), or a LICENSE file must lie "
            "beside it; else find out, and pass licence=…",
        )
    files = sorted(folder.glob("*.safetensors"))
    if weights and not files:
        raise DataError(
            "the model's weights are not there as safetensors",
            where=origin,
            hint="Other formats may run code when they are read: convert them where that is safe",
        )
    sums = {path.name: digest.of_file(path) for path in files} if weights else {}
    return Supplier(
        origin=origin,
        revision=commit,
        licence=named,
        weights=digest.of_json(sums) if sums else None,
    )


def find_licence(folder: Path) -> str | None:
    """What the README's head or, failing that, a licence file says; None when neither does."""
    readme = folder / "README.md"
    if readme.exists():
        parts = readme.read_text(errors="replace").split("---", 2)
        if len(parts) == 3 and not parts[0].strip():
            try:
                head = yaml.safe_load(parts[1])
            except yaml.YAMLError:
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


# ---- Any detection model of the transformers library, such as RT-DETRv2, D-FINE or DETR.
#
# Somebody else made it, so it comes as a supplier's part: its origin, revision, licence and the
# digest of its weights stand in every checkpoint tuned from it, and without a licence it is refused.
# Only safetensors are read, and no code that comes with a model is ever run.


_SOFTMAX_MODEL_TYPES = ("detr", "table-transformer", "yolos")
"""Model types whose classes share one softmax with a last one for no object."""
_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError)
_IGNORED_CONFIG_KEYS = (
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
)


class HuggingFaceDetector(nn.Module):
    """A model of the library as a `DetectionModel`.

    Ignore regions and the trust in labels are unknown to these losses: an object in an ignore
    region counts as background, and every label counts fully.
    """

    def __init__(self, config: DetectorConfig, network: Any, supplier: Supplier | None) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.supplier = supplier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Float32 ``[n, 3, height, width]`` to ``logits`` and ``boxes``, see `queries.decode`."""
        found = self.network(pixel_values=images)
        return found.logits, found.pred_boxes

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The encoder's maps ``[n, c, height/stride, width/stride]``, finest first."""
        return self.features_and_outputs(images)[0]

    def features_and_outputs(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        found = self.network(pixel_values=images)
        last = found.encoder_last_hidden_state
        maps = last if isinstance(last, list | tuple) else [last]
        height, width = images.shape[2:]
        features = tuple(m if m.ndim == 4 else sequence_to_map(m, height, width) for m in maps)
        return features, (found.logits, found.pred_boxes)

    def losses(self, images: Tensor, truth: GroundTruthBatch) -> Losses:
        width, height = self.config.network["size"]
        side = torch.tensor([width, height] * 2, dtype=torch.float32, device=images.device)
        labels = []
        for row, real in enumerate(truth.real > 0):
            corners = (truth.boxes[row][real] / side).clamp(0, 1)
            centre = (corners[:, :2] + corners[:, 2:]) / 2
            boxes = torch.cat([centre, corners[:, 2:] - corners[:, :2]], dim=1)
            labels.append({"class_labels": truth.classes[row][real], "boxes": boxes})
        found = self.network(pixel_values=images, labels=labels)
        parts = {"box": images.new_zeros(()), "cls": images.new_zeros(())}
        for name, value in found.loss_dict.items():
            if name in ("loss_bbox", "loss_giou"):
                parts["box"] = parts["box"] + value.detach()
            elif name in ("loss_ce", "loss_vfl", "loss_focal"):
                parts["cls"] = parts["cls"] + value.detach()
        return Losses(found.loss, parts["cls"], parts["box"])


def load_pretrained(
    source: str | Path,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    licence: str | None = None,
    revision: str | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> HuggingFaceDetector:
    """A supplier's model, ready to be tuned to ``classes``.

    Args:
        source: A folder with ``config.json`` and ``model.safetensors``, or a name on the hub.
        classes: What it is to find; heads for other classes start anew.
        preprocessing: Says the size of its input; see `preprocessing_of` for what it was fed.
        licence: Where the model's files do not name one.
        revision: A commit, tag or branch of the hub.
        fresh: Take the architecture and leave the weights.
        seed: Of whatever starts anew.

    Raises:
        DataError: No model, no licence, or weights that are not safetensors.
    """
    transformers = _import_transformers()
    folder, origin, commit = resolve_model_source(source, revision)
    supplier = supplier_record(folder, origin, commit, licence, weights=not fresh)
    names = dict(enumerate(classes))
    settings = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    here = {"local_files_only": True, "trust_remote_code": False}
    make = transformers.AutoModelForObjectDetection
    try:
        wanted = transformers.AutoConfig.from_pretrained(folder, **here, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if fresh:
                network = make.from_config(wanted, trust_remote_code=False)
            else:
                how = {"use_safetensors": True, "dtype": torch.float32}
                network = make.from_pretrained(
                    folder, config=wanted, ignore_mismatched_sizes=True, **here, **how
                )
    except (*_LOAD_ERRORS, SafetensorError) as error:
        raise DataError(
            f"the detection model cannot be loaded: {_first_line(error)}",
            where=origin,
            hint="It needs config.json of a detection model and model.safetensors; backbones of "
            "timm are not supported",
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


def pretrained_preprocessing(source: str | Path, *, width: int, height: int) -> Preprocessing:
    """Our contract with the scale, mean and std that the supplier's model was trained with.

    The picture is letterboxed, where most of these models were trained on stretched ones: tuning
    makes up for that, and a pedestrian keeps their shape.
    """
    folder, _, _ = resolve_model_source(source, None)
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return Preprocessing(width=width, height=height)
    said = json.loads(path.read_text())
    values: dict[str, Any] = {"width": width, "height": height}
    values["scale"] = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    if said.get("do_normalize", True) and "image_mean" in said:
        values |= {"mean": tuple(said["image_mean"]), "std": tuple(said["image_std"])}
    else:
        values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Preprocessing.model_validate(values)


def build_network(config: DetectorConfig) -> HuggingFaceDetector:
    """The architecture that a checkpoint records, with fresh weights."""
    transformers = _import_transformers()
    described = json.loads(config.network["config"])
    kind = described.pop("model_type")
    described["id2label"] = dict(enumerate(config.classes))
    wanted = transformers.AutoConfig.for_model(kind, **described)
    network = transformers.AutoModelForObjectDetection.from_config(wanted)
    return HuggingFaceDetector(config, network, None)


def _import_transformers() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # It looks for kernels of torchao that no CPU has, and says so each time.
    logging.getLogger("torchao").setLevel(logging.CRITICAL)
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
    return library


def sequence_to_map(sequence: Tensor, height: int, width: int) -> Tensor:
    """``[n, cells, c]``, row by row of an input of this size, as ``[n, c, rows, columns]``."""
    cells = sequence.shape[1]
    for stride in (2**power for power in range(2, 7)):
        rows, columns = -(-height // stride), -(-width // stride)
        if rows * columns == cells:
            return sequence.transpose(1, 2).reshape(len(sequence), -1, rows, columns)
    raise DataError(
        f"the encoder's {cells} cells are no grid over {width} x {height} pixels",
        hint="Choose an input whose sides are multiples of 32",
    )


def _network_config(config: Any) -> str:
    """The library's configuration as JSON text, without what does not shape the network.

    As text, because the library tells 1 from 1.0 and canonical JSON does not.
    """
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    left_out = (*_IGNORED_CONFIG_KEYS, "id2label", "label2id")  # names stand in `classes`, in order
    kept = {name: value for name, value in values.items() if name not in left_out}
    return json.dumps(kept, sort_keys=True)


def _score_function(config: Any) -> str:
    shared = config.model_type in _SOFTMAX_MODEL_TYPES or not getattr(
        config, "use_focal_loss", True
    )
    return "softmax" if shared else "sigmoid"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
