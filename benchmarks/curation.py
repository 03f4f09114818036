"""What curation costs: ``python -m benchmarks.curation [--quick] [--json]``.

The pool is drawn (noise over shapes, JPEG, 480x288) and the detector has its first random weights:
both cost what real ones cost. FiftyOne's way to keep vectors, a field of its samples, is measured
beside ours on a mongod started for it. What mining finds is measured by `benchmarks.mining`.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import curation_fields
from benchmarks.common import Row, main, row
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.curation.embedding.compute import embed
from workbench.detection.config import DetectorConfig
from workbench.detection.families import decode
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Preprocessing, load_rgb, preprocess_batch
from workbench.records.dataset import media_path
from workbench.records.frames import Frame

_BATCH = 16
_SIZE = (480, 288)
_WIDTH = 512
_ENOUGH = 500


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes a smaller pool and fewer vectors."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        workspace = Workspace(Path(name) / ".workbench")
        embedded, vectors = _embedding(workspace, 96 if quick else 512)
        rows = [embedded, *_storing(workspace, quick)]
        # Last, as FiftyOne's threads would be timed with whatever comes after its import.
        with curation_fields.database(workspace) as fiftyone:
            if fiftyone is not None:
                assert embedded.peer
                rows.append(curation_fields.after_loop(workspace, fiftyone, vectors, embedded.peer))
                drawn = _vectors(2_000 if quick else 20_000)
                rows += curation_fields.beside_shards(workspace, fiftyone, drawn)
            return rows


def _embedding(workspace: Workspace, count: int) -> tuple[Row, NDArray[np.float16]]:
    frames = [_frame(workspace, number) for number in range(count)]
    predictor = _detector()
    _bare_loop(workspace, predictor, frames[:_BATCH])
    bare, ours = [], []
    for _ in range(2 if count < _ENOUGH else 8):  # CPU time, as the machine may have other work
        started = time.process_time()
        _bare_loop(workspace, predictor, frames)
        bare.append(count / (time.process_time() - started))
        started = time.process_time()
        vectors = np.array(embed(workspace, predictor, frames).vectors)
        ours.append(count / (time.process_time() - started))
        shutil.rmtree(workspace.root / "embeddings", ignore_errors=True)
    # Of turns that followed each other, as a machine that slows down slows both.
    share = median(own / other for own, other in zip(ours, bare, strict=True))
    found = row(
        "embed a pool, kept on disk",
        median(ours),
        "frames/CPU-s",
        peer=median(ours) / share,
        peer_name="decode, forward and boxes, nothing kept",
        goal=">= 0.95",
        met=share >= 0.95,
    )
    return found, vectors


def _storing(workspace: Workspace, quick: bool) -> list[Row]:
    count = 20_000 if quick else 100_000
    vectors = _vectors(count)
    folder = workspace.root / "embeddings" / "benchmark"
    names = [f"{number:064x}" for number in range(count)]
    started = time.perf_counter()
    curation_fields.write(folder, names, vectors)
    stored = time.perf_counter() - started
    started = time.perf_counter()
    read = curation_fields.read(folder)
    loaded = time.perf_counter() - started
    assert np.array_equal(read, vectors)
    seconds = stored + loaded
    return [
        row(
            f"store and load {count:,} x {_WIDTH} embeddings",
            seconds,
            "s",
            goal="< 3 s for 100,000",
            met=seconds < 3 * count / 100_000,
        )
    ]


def _vectors(count: int) -> NDArray[np.float16]:
    drawn = np.random.default_rng(0).standard_normal((count, _WIDTH), np.float32)
    return drawn.astype(np.float16)


def _bare_loop(workspace: Workspace, predictor: TorchPredictor, frames: list[Frame]) -> None:
    """The least that a pass can do: threads decode while the model runs and boxes are read."""
    import torch

    with ThreadPoolExecutor(2) as pool:
        images = pool.map(lambda frame: load_rgb(media_path(workspace, frame)), frames)
        for _ in range(0, len(frames), _BATCH):
            chunk = list(islice(images, _BATCH))
            batch, _ = preprocess_batch(chunk, predictor.preprocessing)
            with torch.inference_mode():
                outputs = predictor.detector(torch.from_numpy(batch))
            decode([output.numpy() for output in outputs], predictor.config)


def _frame(workspace: Workspace, number: int) -> Frame:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (18, 30, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    data = stream.getvalue()
    frame = Frame(
        id=digest.of_bytes(data),
        drive="drawn",
        index=number,
        width=_SIZE[0],
        height=_SIZE[1],
        suffix=".jpg",
    )
    path = media_path(workspace, frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return frame


def _detector() -> TorchPredictor:
    import torch

    from workbench.detection.detector import Detector

    torch.manual_seed(0)
    torch.set_num_threads(2)
    config = DetectorConfig(classes=tuple(f"class-{number}" for number in range(10)))
    detector = Detector(config)
    detector.set_prior(torch.full((10,), 0.04))  # some boxes a frame, as a trained one has
    return TorchPredictor(detector, Preprocessing())


if __name__ == "__main__":
    main(measure)
