"""Any detection model of the transformers library, such as RT-DETRv2, D-FINE or DETR.

Somebody else made it, so it comes as a supplier's part: its origin, revision, licence and the
digest of its weights stand in every checkpoint tuned from it, and without a licence it is refused.
Only safetensors are read, and no code that comes with a model is ever run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from workbench.errors import DataError
from workbench.perception.contract import HUGGING_FACE, DetectorConfig
from workbench.perception.models.protocol import Losses, Truth
from workbench.perception.models.supplier import folder_of, part_of
from workbench.perception.preprocessing import Preprocessing
from workbench.records.types import Supplier

_SOFTMAX = ("detr", "table-transformer", "yolos")
"""Model types whose classes share one softmax with a last one for no object."""
_BROKEN = (OSError, ValueError, KeyError, ImportError, RuntimeError)
_NO_MATTER = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")


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
        features = tuple(m if m.ndim == 4 else as_map(m, height, width) for m in maps)
        return features, (found.logits, found.pred_boxes)

    def losses(self, images: Tensor, truth: Truth) -> Losses:
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


def load(
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
    transformers = _library()
    folder, origin, commit = folder_of(source, revision)
    supplier = part_of(folder, origin, commit, licence, weights=not fresh)
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
    except (*_BROKEN, SafetensorError) as error:
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
            "config": _described(network.config),
            "scoring": _scoring(network.config),
            "size": [preprocessing.width, preprocessing.height],
        },
    )
    return HuggingFaceDetector(config, network, supplier)


def preprocessing_of(source: str | Path, *, width: int, height: int) -> Preprocessing:
    """Our contract with the scale, mean and std that the supplier's model was trained with.

    The picture is letterboxed, where most of these models were trained on stretched ones: tuning
    makes up for that, and a pedestrian keeps their shape.
    """
    folder, _, _ = folder_of(source, None)
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


def build(config: DetectorConfig) -> HuggingFaceDetector:
    """The architecture that a checkpoint records, with fresh weights."""
    transformers = _library()
    described = json.loads(config.network["config"])
    kind = described.pop("model_type")
    described["id2label"] = dict(enumerate(config.classes))
    wanted = transformers.AutoConfig.for_model(kind, **described)
    network = transformers.AutoModelForObjectDetection.from_config(wanted)
    return HuggingFaceDetector(config, network, None)


def _library() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # It looks for kernels of torchao that no CPU has, and says so each time.
    logging.getLogger("torchao").setLevel(logging.CRITICAL)
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
    return library


def as_map(sequence: Tensor, height: int, width: int) -> Tensor:
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


def _described(config: Any) -> str:
    """The library's configuration as JSON text, without what does not shape the network.

    As text, because the library tells 1 from 1.0 and canonical JSON does not.
    """
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    left_out = (*_NO_MATTER, "id2label", "label2id")  # names stand in `classes`, in order
    kept = {name: value for name, value in values.items() if name not in left_out}
    return json.dumps(kept, sort_keys=True)


def _scoring(config: Any) -> str:
    shared = config.model_type in _SOFTMAX or not getattr(config, "use_focal_loss", True)
    return "softmax" if shared else "sigmoid"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
