"""Many vectors for benchmarks: real object features, and more of their kind.

The real ones are boxes of simulated drives (and, where ``CAMVID`` names a folder of it, of real
drives) through the trained detector: up to 60 proposals a frame, each the mean of the pyramid
under the box (192 numbers) and the finest level around its centre (64 numbers): 256 in all.

More are made by a stated procedure, `expanded`: a real vector is moved a random part of the way to
one of its ten nearest, and noise is added that has half the local covariance's spread, and a tenth
of its size in all directions alike. So neighbourhoods keep their shape and density, and no vector
repeats.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import trained
from benchmarks.common import note
from workbench.curation.embedding.encoders import DetectorEncoder, box_means
from workbench.curation.neighbours import all_neighbours
from workbench.detection.boxes import as_boxes
from workbench.detection.families import decode
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Pixels, load_rgb, preprocess_batch
from workbench.records.dataset import media_path

PROPOSALS = 60
_THRESHOLD = 0.005
_BATCH = 16
_AROUND = 16.0
"""Network pixels to each side of a box's centre that its surroundings are taken from."""


def real_features(*, quick: bool = False) -> NDArray[np.float16]:
    """Object features of drives, float16 ``[n, 256]``; kept in the benchmarks' scratch folder."""
    workspace, dataset, predictor = trained.on_builtin(quick=quick)
    kept = workspace.root / f"object-features-{DetectorEncoder(predictor).model[:12]}.npy"
    camvid = os.environ.get("CAMVID")
    if camvid:
        kept = kept.with_stem(f"{kept.stem}-camvid")
    if not kept.exists():
        note("object features of the drives; kept for the next run")
        paths = [media_path(workspace, frame) for frame in dataset.frames]
        if camvid:
            paths += sorted(Path(camvid).rglob("*.jpg"))
        np.save(kept, _features(predictor, paths))
    features: NDArray[np.float16] = np.load(kept)
    return features


def expanded(
    real: NDArray[np.float16], count: int, path: Path, *, seed: int = 0
) -> NDArray[np.float16]:
    """``count`` vectors of the kind of ``real``, as a mapped ``.npy`` file, see the module."""
    near = all_neighbours(real, 10).rows
    rng = np.random.default_rng(seed)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (count, real.shape[1]))
    for start in range(0, count, 4096):
        size = min(4096, count - start)
        rows = rng.integers(0, len(real), size)
        one = real[rows].astype(np.float32)
        around = real[near[rows]].astype(np.float32)
        other = around[np.arange(size), rng.integers(0, near.shape[1], size)]
        way = rng.random((size, 1), np.float32)
        off = around - around.mean(1, keepdims=True)
        mixed = rng.standard_normal((size, near.shape[1]), np.float32) / np.sqrt(near.shape[1])
        spread = np.sqrt((off * off).mean((1, 2)))[:, None]
        noise = 0.5 * np.einsum("nk,nkd->nd", mixed, off)
        noise += 0.1 * spread * rng.standard_normal(one.shape, np.float32)
        out[start : start + size] = one + way * (other - one) + noise
    out.flush()
    del out
    vectors: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return vectors


def _features(predictor: TorchPredictor, paths: Sequence[Path]) -> NDArray[np.float16]:
    parts = []
    for start in range(0, len(paths), _BATCH):
        images = [load_rgb(path) for path in paths[start : start + _BATCH]]
        parts += _seen(predictor, images)
    return np.concatenate(parts).astype(np.float16)


def _seen(predictor: TorchPredictor, images: Sequence[Pixels]) -> list[NDArray[np.float32]]:
    import torch

    detector = predictor.detector
    batch, _ = preprocess_batch(images, predictor.preprocessing)
    with torch.inference_mode():
        maps = detector.features(torch.from_numpy(batch))
        outputs = [output.numpy() for output in detector.apply_heads(maps)]
        found = decode(outputs, detector.config, score_threshold=_THRESHOLD)
        boxes = [one.boxes[:PROPOSALS] for one in found]
        strides = detector.config.strides
        objects = box_means(maps, boxes, strides)
        around = box_means(maps[:1], [_around(one) for one in boxes], strides[:1])
    return [np.concatenate(parts, axis=1) for parts in zip(objects, around, strict=True)]


def _around(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return as_boxes(np.concatenate([centres - _AROUND, centres + _AROUND], axis=1))
