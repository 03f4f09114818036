"""EfficientNet-Lite0 with its ImageNet weights as an encoder: no labels and no detector needed.

One forward pass gives vectors of the frame and of tiles fine enough for single objects, and for
each of ImageNet's 1,000 classes the largest log probability of any tile, and which tile has it.
(Of logits, the largest finds rare objects less often: tiles full of detail are high in all.) Tile
vectors are of the last map before the classifier's own layers, whose rectifier drops what tells
unusual objects apart, projected onto the directions that those layers look at most.

A frame takes about 114 kB: 108 kB of tiles, 2.6 kB of its own vector and 4 kB of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.curation.embedding.encoders import (
    EncoderOutput,
    TileGrid,
    WordOutput,
    box_means,
    content_areas,
    summed_entropy,
    tile_means,
    top_boxes,
)
from workbench.curation.embedding.image_encoders import BoxSource
from workbench.detection.efficientnet import (
    NORM_EPS,
    EfficientNetLite0,
    fold_norms,
    load_pretrained_weights,
)
from workbench.detection.families import Detections
from workbench.detection.preprocessing import Pixels, Preprocessing, preprocess_batch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Lite0Encoder"]

_STRIDE = 32
_TILE_CHANNELS = 128
"""Of 320. Half as many, and searches from five boxes find a fifth less on real rides; all of them
find no more."""

_TEMPERATURE = 1.5
"""Of the softmax; chosen on real rides among 1, 1.5, 2 and 3."""

_VERSION = 5
"""Part of the identity: raise it when vectors or scores change for equal weights."""


class Lite0Encoder:
    """Embeds images with the ImageNet classifier EfficientNet-Lite0.

    A frame's vector is the mean of what the classifier sees. A tile's or box's is the mean of the
    last map under it, projected to 128 numbers.

    Args:
        boxes: Detector whose boxes get a vector each; None gives no boxes and zero entropy.
        workspace: Where the converted weights are kept; by default the user's cache folder.
        size: Width and height of the network's input, multiples of 64 px; a fine tile is 32 px of
            it. Larger input shows smaller objects and costs time and space by its area.

    Raises:
        DataError: The package with the weights is not installed.
        ParameterError: The size is not one of whole tiles.
    """

    vocabulary = "imagenet-1k"

    def __init__(
        self,
        boxes: BoxSource | None = None,
        workspace: Workspace | None = None,
        size: tuple[int, int] = (768, 448),
    ) -> None:
        import torch

        if min(size) <= 0 or any(side % (2 * _STRIDE) for side in size):
            raise ParameterError(
                "sides must be multiples of 64 px",
                where=f"{size[0]}x{size[1]}",
                hint="The default is 768x448; 1280x704 shows smaller objects",
            )
        weights, supplier = load_pretrained_weights(workspace)
        self.boxes = boxes
        self.model = str(supplier.weights)
        self._spec = Preprocessing.imagenet_lite(*size)
        self._fine = (size[0] // _STRIDE, size[1] // _STRIDE)
        self.grid: TileGrid = ((self._fine[0] // 2, self._fine[1] // 2), self._fine)
        net = EfficientNetLite0(classifier=True)
        net.load_state_dict(weights)
        self._net = fold_norms(net)
        assert self._net.classifier is not None  # noqa: S101
        assert self._net.head is not None  # noqa: S101
        self._head, self._classifier = self._net.head, self._net.classifier
        self._projection = torch.from_numpy(_projection(weights))

    @cached_property
    def preprocessing(self) -> str:
        """Digest of the preprocessing, the projection and the detector whose boxes are used."""
        return digest.of_json(
            {
                "input": self._spec.digest,
                "channels": _TILE_CHANNELS,
                "version": _VERSION,
                "boxes": self.boxes and self.boxes.identity,
            }
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.boxes.predictor.classes if self.boxes else ()

    def embed(self, images: Sequence[Pixels]) -> EncoderOutput:
        import torch

        batch, transforms = preprocess_batch(images, self._spec)
        areas = content_areas(images, transforms)
        detections, entropy = self._detect(images)
        network_boxes = [
            transform.to_network(one.boxes)
            for transform, one in zip(transforms, detections, strict=True)
        ]
        pixels = torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            # One at a time, see `fold_norms`.
            last = torch.cat([self._net.maps(image[None])[-1] for image in pixels])
            cells = self._head(last)
            tiles = torch.from_numpy(tile_means((cells,), areas, (_STRIDE,), self._fine))
            logits = self._classifier(tiles)
            evidence = logits - _TEMPERATURE * (logits / _TEMPERATURE).logsumexp(2, keepdim=True)
            scores, best = evidence.max(1)
            objects = box_means((last,), network_boxes, (_STRIDE,))
            means = torch.from_numpy(tile_means((last,), areas, (_STRIDE,), self._fine))
            return EncoderOutput(
                frames=tiles[:, -self._fine[0] * self._fine[1] :].mean(1).numpy(),
                entropy=entropy,
                detections=detections,
                objects=[vectors @ self._projection.numpy() for vectors in objects],
                tiles=(means @ self._projection).numpy(),
                words=WordOutput(scores.numpy(), best.numpy().astype(np.uint16)),
            )

    def _detect(self, images: Sequence[Pixels]) -> tuple[list[Detections], NDArray[np.float32]]:
        if self.boxes is None:
            none = Detections(
                np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64)
            )
            return [none] * len(images), np.zeros(len(images), np.float32)
        predicted = self.boxes.predictor.predict(images)
        entropy = np.array([summed_entropy(one.scores) for one in predicted], np.float32)
        return [top_boxes(one) for one in predicted], entropy


def _projection(weights: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """``[320, 128]``: orthonormal directions of the last map that the layer after it, with its
    norm's scale, weighs most, the strongest first.
    """
    scale = weights["head.norm.weight"] / (weights["head.norm.running_var"] + NORM_EPS).sqrt()
    layer = weights["head.conv.weight"][:, :, 0, 0] * scale[:, None]
    _, _, directions = np.linalg.svd(layer.numpy().astype(np.float64), full_matrices=False)
    kept = directions[:_TILE_CHANNELS]
    largest = np.take_along_axis(kept, np.abs(kept).argmax(1)[:, None], axis=1)
    projection: NDArray[np.float32] = (kept * np.sign(largest)).T.astype(np.float32)
    return projection
