"""Compact detector: convolutions, batch norm and ReLU only, because these quantise well.

An anchor-free one-stage detector (as FCOS, Tian et al. 2019, with the two-branch head of YOLOX, Ge
et al. 2021): a small residual backbone, a top-down feature pyramid (Lin et al. 2017), and a head
for each level. Outputs are raw maps. Decoding and suppression stay outside the graph, since
quantising them costs accuracy and no accelerator gains from them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.core.errors import ParameterError
from workbench.detection.config import DetectorConfig

__all__ = ["Detector"]

_STAGE_CHANNELS, _NECK_CHANNELS = (32, 64, 96, 128), 64
_FIRST_STRIDE = 8


class ConvUnit(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut and ``inner`` channels between them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, inner, 1 if inner < channels else 3)
        self.second = ConvUnit(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out


class DetectionHead(nn.Module):
    """Class and box maps of one pyramid level."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls_tower = ConvUnit(channels, channels)
        self.box_tower = ConvUnit(channels, channels)
        self.cls = nn.Conv2d(channels, classes, 1)
        self.box = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls(self.cls_tower(x)), self.box(self.box_tower(x))


class PyramidDetector(nn.Module):
    """A feature pyramid and heads on a backbone: images to raw maps.

    A subclass builds its backbone, then calls `_build_pyramid` and `_initialise`.

    Args:
        config: Classes and strides: (8, 16, 32), (8, 16) or (8,).

    Raises:
        ParameterError: Other strides.
    """

    laterals: nn.ModuleList
    smooth: nn.ModuleList
    heads: nn.ModuleList

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        levels = len(config.strides)
        if config.strides != tuple(_FIRST_STRIDE * 2**level for level in range(min(levels, 3))):
            raise ParameterError(
                f"strides {config.strides} are not supported",
                where="DetectorConfig.strides",
                hint="Use (8, 16, 32), (8, 16) or (8,)",
            )
        self.config = config
        self._frozen: list[nn.Module] = []

    def backbone_stages(self) -> list[nn.Module]:
        """Stages of the backbone from the image on, the stem included."""
        raise NotImplementedError

    def freeze(self, stages: int, *, norm: bool = False) -> None:
        """Keep parts of the backbone as they are while the rest is trained.

        Args:
            stages: The first so many stages are not trained at all.
            norm: Every batch norm of the backbone keeps its statistics, scale and bias.

        Raises:
            ParameterError: The backbone has fewer stages.
        """
        parts = self.backbone_stages()
        if stages > len(parts):
            raise ParameterError(
                f"{stages} stages cannot be frozen: the backbone has {len(parts)}",
                where="TrainingConfig.freeze",
            )
        frozen = parts[:stages]
        if norm:
            inner = (module for part in parts for module in part.modules())
            frozen += [module for module in inner if isinstance(module, nn.BatchNorm2d)]
        for module in frozen:
            module.requires_grad_(False)
        self._frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps ``[n, c, height/stride, width/stride]``, finest first."""
        return self.pyramid(self.backbone_maps(x))

    def pyramid(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Feature maps from the maps of the backbone, see `backbone_maps`."""
        maps = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        for level in range(len(maps) - 2, -1, -1):
            coarser = functional.interpolate(maps[level + 1], scale_factor=2.0, mode="nearest")
            maps[level] = self.smooth[level](maps[level] + coarser)
        return tuple(maps)

    def features_and_outputs(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Feature maps and raw outputs from one forward pass."""
        maps = self.features(x)
        return maps, self.apply_heads(maps)

    def apply_heads(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Raw outputs from feature maps."""
        outputs: list[Tensor] = []
        for head, level in zip(self.heads, maps, strict=True):
            outputs.extend(head(level))
        return tuple(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map float32 images ``[n, 3, height, width]`` to ``(cls, box)`` for each stride.

        ``cls`` is ``[n, classes, h, w]`` logits; ``box`` is ``[n, 4, h, w]`` raw distances to
        left, top, right and bottom, see `workbench.detection.families`. Height and width must be
        multiples of the coarsest stride.
        """
        return self.apply_heads(self.features(x))

    def set_prior(self, shares: Tensor) -> None:
        """Initialise class biases to the share of positive cells (RetinaNet, Lin et al. 2017).

        Args:
            shares: ``[classes]`` in (0, 1).
        """
        for head in self._heads():
            _bias_of(head.cls).data.copy_(torch.log(shares / (1 - shares)))

    def backbone_maps(self, x: Tensor, levels: int | None = None) -> list[Tensor]:
        """Maps of the backbone, one for each stride, finest first; the first ``levels`` only."""
        raise NotImplementedError

    def complete_maps(self, known: Sequence[Tensor]) -> list[Tensor]:
        """All maps of the backbone from the first of them: what lies before is not computed."""
        raise NotImplementedError

    def known_levels(self, frozen: int) -> int:
        """How many maps of the backbone stay as they are while its first stages are frozen.

        Args:
            frozen: Number of frozen stages, the stem first.
        """
        raise NotImplementedError

    def _build_pyramid(self, channels: Sequence[int]) -> None:
        """Pyramid and heads on backbone maps with these channels."""
        neck = _scaled_channels(_NECK_CHANNELS, self.config.width)
        self.laterals = nn.ModuleList(ConvUnit(size, neck, 1) for size in channels)
        self.smooth = nn.ModuleList(ConvUnit(neck, neck) for _ in channels[1:])
        classes = len(self.config.classes)
        self.heads = nn.ModuleList(DetectionHead(neck, classes) for _ in channels)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for head in self._heads():
            nn.init.normal_(head.cls.weight, std=0.01)
            nn.init.normal_(head.box.weight, std=0.01)
            nn.init.constant_(_bias_of(head.cls), -math.log(99))
            nn.init.constant_(_bias_of(head.box), 1.0)

    def _heads(self) -> Iterator[DetectionHead]:
        for head in self.heads:
            assert isinstance(head, DetectionHead)  # noqa: S101 - for the type checker
            yield head


class Detector(PyramidDetector):
    """The compact detector: a small residual backbone under pyramid and heads.

    Args:
        config: Classes, width, depth and strides.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        sizes = [
            _scaled_channels(channels, config.width)
            for channels in _STAGE_CHANNELS[: len(config.strides) + 1]
        ]
        # One stride-4 convolution: full-resolution maps cost time and gain no accuracy.
        self.stem = ConvUnit(3, sizes[0], size=7, stride=4)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvUnit(before, after, stride=2),
                *(
                    ResidualBlock(after, after if stage < 2 else after // 2)
                    for _ in range(config.depth)
                ),
            )
            for stage, (before, after) in enumerate(itertools.pairwise(sizes))
        )
        self._build_pyramid(sizes[1:])
        self._initialise()

    def backbone_stages(self) -> list[nn.Module]:
        """The stem, then a stage for each stride."""
        return [self.stem, *self.stages]

    def backbone_maps(self, x: Tensor, levels: int | None = None) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages[:levels]:
            x = stage(x)
            maps.append(x)
        return maps

    def complete_maps(self, known: Sequence[Tensor]) -> list[Tensor]:
        maps = list(known)
        for stage in self.stages[len(known) :]:
            maps.append(stage(maps[-1]))
        return maps

    def known_levels(self, frozen: int) -> int:
        return max(0, frozen - 1)


def _bias_of(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None  # noqa: S101 - for the type checker
    return convolution.bias


def pool_features(maps: tuple[Tensor, ...]) -> Tensor:
    """One vector per frame: mean and maximum of each channel and pyramid level.

    Args:
        maps: Feature maps ``[n, c, h, w]`` of each level.

    Returns:
        Float32 ``[n, 2 * channels * levels]``.
    """
    parts = [reduced for level in maps for reduced in (level.mean((2, 3)), level.amax((2, 3)))]
    return torch.cat(parts, dim=1)


def _scaled_channels(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))
