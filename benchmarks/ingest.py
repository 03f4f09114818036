"""Frames a second from a folder into the workspace: decoded whole, hashed, checked and copied.

The peer reads the same files in the same run: a tight loop of decoding and hashing on one thread
that checks and keeps nothing. The frames are drawn here; their JPEG files are about as large as
those of real street scenes.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import Row, main, row, seconds
from workbench import data
from workbench.core.workspace import Workspace
from workbench.data.readers import read_source
from workbench.records.store import Store

WIDTH, HEIGHT = 480, 360
GOAL = 300.0
_BOXES = 8


def measure(quick: bool) -> list[Row]:
    frames = 300 if quick else 1500
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as folder:
        jpeg = _source(Path(folder) / "jpeg", frames, "jpg")
        png = _source(Path(folder) / "png", max(frames // 5, 70), "png")
        tight = frames / seconds(lambda: _tight_loop(jpeg))
        rows = [
            row(
                "ingest 480x360 JPEG, 2 processes",
                ours := _ingested(jpeg, workers=2),
                "frames/s",
                peer=tight,
                peer_name="decode + sha256, 1 thread",
                goal=f">= {GOAL:.0f}",
                met=ours >= GOAL,
            ),
            row(
                "ingest 480x360 JPEG, 1 process",
                _ingested(jpeg, workers=1),
                "frames/s",
                peer=tight,
                peer_name="decode + sha256, 1 thread",
            ),
            row(
                "ingest 480x360 PNG, 2 processes",
                _ingested(png, workers=2),
                "frames/s",
                peer=_rate(png),
                peer_name="decode + sha256, 1 thread",
            ),
        ]
        return rows


def _source(folder: Path, frames: int, suffix: str) -> Path:
    """A COCO source of smooth pictures with some noise: about the size of a street scene's file."""
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(frames):
        coarse = Image.fromarray(draw.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + draw.integers(-12, 12, smooth.shape, dtype=np.int16)
        name = f"images/d{number % 10}_{number:05d}.{suffix}"
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        picture.save(folder / name, quality=93)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for box in range(_BOXES):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [10 + 40 * box, 20 + 3 * box, 30, 25],
                }
            )
    body = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "car"}],
    }
    (folder / "labels.coco.json").write_text(json.dumps(body))
    return folder


def _ingested(source: Path, *, workers: int) -> float:
    """Frames a second of the whole: reading annotations to the record on disk."""
    homes = source.parent / f"homes-{source.name}-{workers}"

    def once() -> None:
        shutil.rmtree(homes, ignore_errors=True)
        workspace = Workspace(homes)
        ingested = data.ingest(workspace, source, name="bench", workers=workers)
        assert not ingested.quarantine
        ingested.save(Store(workspace), data.assign_roles(ingested.dataset))

    return len(read_source(source).frames) / seconds(once)


def _rate(source: Path) -> float:
    return len(read_source(source).frames) / seconds(lambda: _tight_loop(source))


def _tight_loop(source: Path) -> None:
    for file in sorted((source / "images").iterdir()):
        content = file.read_bytes()
        hashlib.sha256(content).hexdigest()
        Image.open(io.BytesIO(content)).load()


if __name__ == "__main__":
    main(measure)
