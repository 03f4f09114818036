"""Small sources in every format with known content."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """An encoded image of noise; another seed, other bytes."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed, "PNG" if path.suffix == ".png" else "JPEG"))
    return path


def coco_image(number: int, file: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file, "width": WIDTH, "height": HEIGHT, **more}


def coco_box(number: int, image: int, box: list[float], category: int = 1, **more: Any) -> Any:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


CATEGORIES = (
    {"id": 1, "name": "car"},
    {"id": 2, "name": "Person"},
    {"id": 3, "name": "hovercraft"},
)


def write_coco(folder: Path, images: list[Any], annotations: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    body = {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}
    (folder / "labels.coco.json").write_text(json.dumps(body))
    return folder


def coco_source(folder: Path, frames: int = 4) -> Path:
    """``frames`` frames of two drives, a car on each."""
    images, boxes = [], []
    for number in range(frames):
        file = f"images/{'ab'[number % 2]}_{number:04d}.jpg"
        write_picture(folder / file, number)
        images.append(coco_image(number, file))
        boxes.append(coco_box(number, number, [4, 5, 20, 10]))
    return write_coco(folder, images, boxes)
