"""A small dataset of generated frames with selection and batch, without a server."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageDraw

from workbench import labeling
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.labeling.regions import Region
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Origin, Role
from workbench.records.store import Store
from workbench.records.types import Prediction, SelectedFrame, Selection

WIDTH, HEIGHT = 241, 143
SCHEMA = LabelSchema(name="dashcam", version=1, classes=("car", "pedestrian"))
MODEL = f"checkpoint/{'0' * 64}"


@dataclass(frozen=True)
class Sample:
    """``frames`` in the order they were selected; the first has no boxes, the n-th n % 3."""

    workspace: Workspace
    store: Store
    dataset: Dataset
    selection: Ref
    frames: tuple[Frame, ...]
    predictions: tuple[Prediction, ...]

    @property
    def ref(self) -> Ref:
        assert self.dataset.ref is not None
        return self.dataset.ref

    def batch(self, overlap: float = 0.0) -> Ref:
        return labeling.make_batch(
            self.store, self.ref, self.selection, MODEL, self.predictions, overlap=overlap
        )

    def boxes(self, frame: Digest) -> tuple[Label, ...]:
        return self.dataset.labels_by_frame[frame]


def make_sample(workspace: Workspace, name: str, count: int) -> Sample:
    """``name`` and pictures differ, so that samples on one server do not share frames."""
    store = Store(workspace)
    drawn = [_frame(workspace, name, index) for index in range(count)]
    dataset = Dataset(
        name=re.sub(r"[^\w.-]+", "-", name).lstrip("-_."),
        label_schema=SCHEMA,
        drives=(Drive(id="drive", simulated=True),),
        frames=tuple(frame for frame, _ in drawn),
        labels=tuple(label for _, labels in drawn for label in labels),
        simulated=True,
    )
    ref = datasets.save_dataset(store, dataset, made_by="ingest")
    saved = datasets.load_dataset(store, ref)
    chosen = tuple(
        SelectedFrame(
            frame=frame.id, rank=rank, score=1 - rank / 100, reasons=("far from the others",)
        )
        for rank, frame in enumerate(saved.frames)
    )
    selection = Selection(dataset=ref, budget=count, seed=0, method="test", chosen=chosen)
    predictions = tuple(
        Prediction(frame=label.frame, cls=label.cls, box=label.box, score=0.75)
        for label in saved.labels
    )
    return Sample(workspace, store, saved, store.put(selection), saved.frames, predictions)


@pytest.fixture
def sample(workspace: Workspace) -> Sample:
    return make_sample(workspace, "tiny", 7)


def _frame(workspace: Workspace, name: str, index: int) -> tuple[Frame, list[Label]]:
    seed = int(digest.of_bytes(f"{name} {index}".encode())[:8], 16)
    generator = np.random.default_rng(seed)
    picture = Image.new("RGB", (WIDTH, HEIGHT), tuple(generator.integers(0, 255, 3).tolist()))
    canvas = ImageDraw.Draw(picture)
    boxes = []
    for _ in range(index % 3):
        w, h = generator.uniform(12, 60, 2)
        x, y = generator.uniform(0, WIDTH - w), generator.uniform(0, HEIGHT - h)
        canvas.rectangle((x, y, x + w, y + h), fill=(200, 80, 40))
        boxes.append(Box(x=float(x), y=float(y), w=float(w), h=float(h)))
    content = io.BytesIO()
    picture.save(content, "PNG")
    frame = Frame(
        id=digest.of_bytes(content.getvalue()),
        drive="drive",
        index=index,
        width=WIDTH,
        height=HEIGHT,
        suffix=".png",
        role=Role.POOL,
    )
    image = datasets.media_path(workspace, frame)
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(content.getvalue())
    return frame, [
        Label(frame=frame.id, cls="car", box=box, origin=Origin.RENDERED, occluded=0.3)
        for box in boxes
    ]


def frame_regions(choices: Mapping[str, str], comment: str | None = None) -> list[Region]:
    """Answers about a whole frame, as Label Studio exports them."""
    regions: list[Region] = [
        {
            "to_name": "image",
            "id": f"frame-{name}",
            "from_name": name,
            "type": "choices",
            "value": {"choices": [answer]},
        }
        for name, answer in choices.items()
    ]
    if comment:
        regions.append(
            {
                "to_name": "image",
                "id": "frame-comment",
                "from_name": "comment",
                "type": "textarea",
                "value": {"text": [comment]},
            }
        )
    return regions
