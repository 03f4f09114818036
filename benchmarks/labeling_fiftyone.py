"""FiftyOne's own Label Studio integration, timed in a process of its own.

``python -m benchmarks.labeling_fiftyone ORDER.json`` reads what to send and prints one object:
the seconds of one ``annotate`` call, and how many tasks and predictions the server then has. The
samples are in FiftyOne before the clock starts. Its attachment and its database are those of this
process, and a benchmark that imported FiftyOne would time itself beside its threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import ServiceError

_FIELD = "predicted"
_PATIENCE_S = 500


@dataclass(frozen=True)
class Order:
    """What to send: ``images`` with ``boxes`` each, as shares of the image (x, y, w, h).

    FiftyOne uploads the images. Its other way, to name files that the server sees, ends in an
    error with the SDK of today: it asks for a folder above the one that the server serves.
    """

    url: str
    images: tuple[str, ...]
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...]
    width: int
    height: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Duration of the call in seconds, and tasks and predictions on the server afterwards."""

    seconds: float
    tasks: int
    predictions: int


def send(order: Order, token: str, variables: dict[str, str], folder: Path) -> Outcome:
    """Send in a separate process.

    Args:
        variables: Environment with the address of FiftyOne's database.

    Raises:
        ServiceError: The process failed; the message has its last line of standard error.
    """
    written = folder / "order.json"
    written.write_text(json.dumps(asdict(order)))
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.labeling_fiftyone", str(written)],
        env={**os.environ, **variables, "FIFTYONE_LABELSTUDIO_API_KEY": token},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    if process.returncode:
        last = [line for line in process.stderr.splitlines() if line.strip()][-1:]
        raise ServiceError(f"FiftyOne's integration failed: {''.join(last)}", where=order.url)
    return Outcome(**json.loads(process.stdout.splitlines()[-1]))


def _main(arguments: Sequence[str]) -> None:
    import fiftyone as fo
    from label_studio_sdk import LabelStudio

    order = Order(**json.loads(Path(arguments[0]).read_text()))
    token = os.environ["FIFTYONE_LABELSTUDIO_API_KEY"]
    dataset = _dataset(fo, order)
    title = f"fiftyone-{len(order.images)}"
    start = time.perf_counter()
    dataset.annotate(
        "sent",
        backend="labelstudio",
        label_field=_FIELD,
        label_type="detections",
        classes=list(order.classes),
        url=order.url,
        api_key=token,
        project_name=title,
    )
    took = time.perf_counter() - start
    sdk: Any = LabelStudio(base_url=order.url, api_key=token)
    project = next(one for one in sdk.projects.list(title=title) if one.title == title)
    created = sdk.projects.get(project.id)
    outcome = Outcome(took, created.task_number, created.total_predictions_number)
    sdk.projects.delete(project.id)
    dataset.delete()
    print(json.dumps(asdict(outcome)))


def _dataset(fo: Any, order: Order) -> Any:
    dataset = fo.Dataset()
    samples = []
    for image, boxes in zip(order.images, order.boxes, strict=True):
        detections = [
            fo.Detection(label=order.classes[0], bounding_box=list(box), confidence=0.5)
            for box in boxes
        ]
        sample = fo.Sample(
            filepath=image,
            metadata=fo.ImageMetadata(
                width=order.width, height=order.height, mime_type="image/jpeg"
            ),
        )
        sample[_FIELD] = fo.Detections(detections=detections)
        samples.append(sample)
    dataset.add_samples(samples, progress=False)
    return dataset


if __name__ == "__main__":
    _main(sys.argv[1:])
