"""Small evaluation sets whose right answers are known, or can be had from COCO's own code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from workbench.evaluation.results import EvaluationSettings
from workbench.records.dataset import Dataset
from workbench.records.frames import (
    Box,
    Conditions,
    Drive,
    Frame,
    Label,
    LabelSchema,
    Light,
    Origin,
    Weather,
)
from workbench.records.types import Prediction

SCHEMA = LabelSchema(
    name="test",
    version=1,
    classes=("car", "truck", "pedestrian", "cyclist"),
    vulnerable=("pedestrian", "cyclist"),
)
QUICK = EvaluationSettings(resamples=100)


@dataclass(frozen=True)
class Case:
    dataset: Dataset
    predictions: tuple[Prediction, ...]

    def with_predictions(self, predictions: Iterable[Prediction]) -> Case:
        return Case(self.dataset, tuple(predictions))


class Build:
    """Makes frames, labels and whole random sets."""

    schema = SCHEMA
    quick = QUICK

    def frame(self, drive: str = "d0", index: int = 0, **more: object) -> Frame:
        fields = {
            "id": hashlib.sha256(f"{drive}/{index}".encode()).hexdigest(),
            "drive": drive,
            "index": index,
            "timestamp_us": index * 500_000,
            "width": 480,
            "height": 288,
            "suffix": ".jpg",
        }
        return Frame.model_validate(fields | more)

    def label(self, frame: Frame, cls: str, box: tuple[float, ...], **more: object) -> Label:
        fields = {"frame": frame.id, "cls": cls, "box": self.box(box), "origin": Origin.HUMAN}
        return Label.model_validate(fields | more)

    def prediction(
        self, frame: Frame, cls: str, box: tuple[float, ...], score: float = 0.9
    ) -> Prediction:
        return Prediction(frame=frame.id, cls=cls, box=self.box(box), score=score)

    def box(self, xywh: tuple[float, ...]) -> Box:
        x, y, w, h = xywh
        return Box(x=x, y=y, w=w, h=h)

    def dataset(self, frames: Iterable[Frame], labels: Iterable[Label] = ()) -> Dataset:
        frames = tuple(frames)
        drives = tuple(Drive(id=name) for name in sorted({frame.drive for frame in frames}))
        return Dataset("test", SCHEMA, drives, frames, tuple(labels))

    def random(
        self, seed: int = 0, *, drives: int = 12, each: int = 4, coarse: bool = False
    ) -> Case:
        """Boxes, near misses and false alarms. ``coarse``: a coarse grid, so that all ties occur.

        Otherwise every score differs, and COCO's figures do not depend on the order of frames.
        """
        random = np.random.default_rng(seed)
        frames, labels, found = [], [], []
        for drive in range(drives):
            conditions = Conditions(
                light=list(Light)[drive % 3],
                weather=list(Weather)[drive % 4],
                construction=drive % 5 == 0,
            )
            for index in range(each):
                frame = self.frame(f"d{drive:02d}", index, conditions=conditions)
                frames.append(frame)
                for _ in range(random.integers(0, 7)):
                    cls = SCHEMA.classes[random.integers(4)]
                    box = _random_box(random, coarse)
                    labels.append(
                        self.label(
                            frame,
                            cls,
                            box,
                            occluded=float(random.choice([0.0, 0.3, 0.6])),
                            ignore=bool(random.uniform() < 0.15),
                        )
                    )
                    for _ in range(random.integers(0, 3)):
                        seen = _shifted(random, box, coarse)
                        found.append(self.prediction(frame, cls, seen, _score(random, coarse)))
                for _ in range(random.integers(0, 4)):
                    cls = SCHEMA.classes[random.integers(4)]
                    box = _random_box(random, coarse)
                    found.append(self.prediction(frame, cls, box, _score(random, coarse)))
        return Case(self.dataset(frames, labels), tuple(found))

    def repeated(self, case: Case, times: dict[str, int]) -> Case:
        """Each drive so many times, as drives of their own; a drive with 0 is left out."""
        frames, labels, found = [], [], []
        for drive, count in times.items():
            for copy in range(count):
                for frame in (f for f in case.dataset.frames if f.drive == drive):
                    name = f"{drive}#{copy}"
                    twin = self.frame(name, frame.index, conditions=frame.conditions)
                    frames.append(twin)
                    labels += [
                        label.model_copy(update={"frame": twin.id})
                        for label in case.dataset.labels_by_frame[frame.id]
                    ]
                    found += [
                        each.model_copy(update={"frame": twin.id})
                        for each in case.predictions
                        if each.frame == frame.id
                    ]
        return Case(self.dataset(frames, labels), tuple(found))

    def shuffled(self, case: Case, seed: int) -> Case:
        random = np.random.default_rng(seed)

        def mixed(rows: tuple) -> tuple:  # type: ignore[type-arg]
            return tuple(rows[position] for position in random.permutation(len(rows)))

        dataset = replace(
            case.dataset, frames=mixed(case.dataset.frames), labels=mixed(case.dataset.labels)
        )
        return Case(dataset, mixed(case.predictions))


def _random_box(random: np.random.Generator, coarse: bool) -> tuple[float, ...]:
    if coarse:
        return (*(8.0 * random.integers(0, 4, 2)), *(8.0 * random.integers(1, 6, 2)))
    return (*random.uniform(0, 300, 2), *random.uniform(4, 150, 2))


def _shifted(
    random: np.random.Generator, box: tuple[float, ...], coarse: bool
) -> tuple[float, ...]:
    x, y, w, h = box
    if coarse:
        return (x + 8.0 * random.integers(0, 2), y, w, h)
    return (x + random.normal(0, 3), y + random.normal(0, 3), w * random.uniform(0.8, 1.2), h)


def _score(random: np.random.Generator, coarse: bool) -> float:
    return float(random.integers(1, 10) / 10 if coarse else random.uniform())


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()


@pytest.fixture(scope="session")
def quick() -> EvaluationSettings:
    return QUICK


Plain = Callable[[Case], dict[str, float]]


@pytest.fixture(scope="session")
def plain_coco() -> Plain:
    """COCO's summary of a set by faster-coco-eval, used as its own documentation shows."""

    def run(case: Case) -> dict[str, float]:
        from faster_coco_eval import COCO, COCOeval_faster

        number = {frame.id: position + 1 for position, frame in enumerate(case.dataset.frames)}
        classes = {name: position + 1 for position, name in enumerate(SCHEMA.classes)}
        truth = COCO(
            {
                "images": [{"id": position} for position in number.values()],
                "categories": [
                    {"id": position, "name": name} for name, position in classes.items()
                ],
                "annotations": [
                    {
                        "id": position + 1,
                        "image_id": number[label.frame],
                        "category_id": classes[label.cls],
                        "bbox": [label.box.x, label.box.y, label.box.w, label.box.h],
                        "area": label.box.w * label.box.h,
                        "iscrowd": int(label.ignore),
                    }
                    for position, label in enumerate(case.dataset.labels)
                ],
            }
        )
        found = truth.loadRes(
            [
                {
                    "image_id": number[each.frame],
                    "category_id": classes[each.cls],
                    "bbox": [each.box.x, each.box.y, each.box.w, each.box.h],
                    "score": each.score,
                }
                for each in case.predictions
            ]
        )
        evaluation = COCOeval_faster(truth, found, iouType="bbox")
        evaluation.run()
        names = ("AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large")
        names += ("AR_1", "AR_10", "AR_all", "AR_small", "AR_medium", "AR_large")
        return dict(zip(names, map(float, evaluation.stats), strict=False))

    return run
