"""Are weak slices found, and only those? ``python -m benchmarks.slice_discovery``.

Labels of 300 drives with six independent conditions of drives; misses differ between drives. In a
planted set one combination is missed more often (0.55 instead of 0.30); in a null set none is. A
planted slice is found when a reported one shares more than half of its labels (Jaccard). The peer
tests each slice alone with labels as the unit, as most tools do.
"""

from __future__ import annotations

import numpy as np

from benchmarks.common import Row, main, row
from workbench.data.slices import ALL_FRAMES
from workbench.detection.model import Predictions
from workbench.evaluation.metrics import evaluate
from workbench.evaluation.results import EvaluationSettings
from workbench.evaluation.slice_discovery import discover_slices
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Origin
from workbench.records.types import Prediction

_SCHEMA = LabelSchema(name="benchmark", version=1, classes=("car", "pedestrian"))
_BOX = Box(x=10, y=10, w=50, h=50)
_KEYS = ("road", "surface", "traffic", "zone", "lamps", "lens")


def made(
    seed: int, planted: bool, drives: int = 300
) -> tuple[Dataset, list[Prediction], dict[str, str]]:
    """A dataset, predictions, and the conditions of the planted slice."""
    random = np.random.default_rng(seed)
    answers = random.integers(0, 4, (drives, len(_KEYS)))
    while True:
        keys = random.choice(len(_KEYS), random.integers(1, 3), replace=False)
        values = random.integers(0, 4, len(keys))
        inside = (answers[:, keys] == values).all(axis=1)
        if inside.sum() >= 14:
            break
    frames: list[Frame] = []
    labels: list[Label] = []
    found: list[Prediction] = []
    for drive in range(drives):
        attributes = {key: f"v{answers[drive, k]}" for k, key in enumerate(_KEYS)}
        base = 0.55 if planted and inside[drive] else 0.30
        rate = random.beta(base * 12, (1 - base) * 12)
        frame = Frame(
            id=f"{drive:064x}", drive=f"d{drive:03d}", index=0, width=640, height=480,
            suffix=".jpg", attributes=attributes,
        )  # fmt: skip
        frames.append(frame)
        for place in range(int(random.poisson(18)) + 4):
            box = _BOX.model_copy(update={"x": 60.0 * (place % 8), "y": 60.0 * (place // 8)})
            cls = _SCHEMA.classes[int(random.integers(2))]
            labels.append(Label(frame=frame.id, cls=cls, box=box, origin=Origin.HUMAN))
            if random.uniform() >= rate:
                found.append(Prediction(frame=frame.id, cls=cls, box=box, score=0.9))
    names = tuple(Drive(id=f"d{drive:03d}") for drive in range(drives))
    dataset = Dataset("planted", _SCHEMA, names, tuple(frames), tuple(labels))
    return dataset, found, {_KEYS[k]: f"v{v}" for k, v in zip(keys, values, strict=True)}


def found_share(seed: int, planted: bool) -> tuple[float, int, int]:
    """Largest Jaccard index with the planted labels, slices reported, and the peer's."""
    dataset, predictions, where = made(seed, planted)
    settings = EvaluationSettings(resamples=100)
    evaluation = evaluate(Predictions(dataset, predictions), [ALL_FRAMES], settings=settings)
    result = discover_slices(evaluation)
    by_frame = {frame.id: frame for frame in dataset.frames}

    def members(terms: dict[str, str]) -> set[int]:
        return {
            n
            for n, label in enumerate(dataset.labels)
            if all(
                (label.cls if key == "class" else by_frame[label.frame].attributes.get(key))
                == value
                for key, value in terms.items()
            )
        }

    truth = members(where)
    best = 0.0
    for one in result.found:
        terms = dict(term.split("=") for term in one.name.split("+"))
        if "size" not in terms:
            seen = members(terms)
            best = max(best, len(seen & truth) / len(seen | truth))
    return best, len(result.found), _peer(dataset, predictions)


def _peer(dataset: Dataset, predictions: list[Prediction]) -> int:
    """Slices of one condition that a test of two shares with labels as the unit reports."""
    from scipy import stats

    hits = {(each.frame, each.box.xyxy) for each in predictions}
    missed = np.array([(one.frame, one.box.xyxy) not in hits for one in dataset.labels])
    by_frame = {frame.id: frame.attributes for frame in dataset.frames}
    count = 0
    for key in _KEYS:
        for value in range(4):
            inside = np.array([by_frame[one.frame][key] == f"v{value}" for one in dataset.labels])
            table = [
                [int((missed & side).sum()), int((~missed & side).sum())]
                for side in (inside, ~inside)
            ]
            count += stats.fisher_exact(table, alternative="greater").pvalue <= 0.05
    return count


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes a fifth of the sets."""
    trials = 20 if quick else 100
    planted = [found_share(seed, planted=True) for seed in range(trials)]
    null = [found_share(10_000 + seed, planted=False) for seed in range(trials)]
    hit = float(np.mean([best > 0.5 for best, *_ in planted]))
    false = float(np.mean([count > 0 for _, count, _ in null]))
    peer = float(np.mean([other > 0 for *_, other in null]))
    return [
        row(
            f"planted slices found, {trials} sets of 300 drives",
            hit,
            "share of sets",
            goal=">= 0.9",
            met=hit >= 0.9,
        ),
        row(
            f"null sets with a false slice, {trials} sets",
            false,
            "share of sets",
            peer=peer,
            peer_name="Fisher's exact test, labels as the unit",
            goal="<= 0.05",
            met=false <= 0.05,
        ),
    ]


if __name__ == "__main__":
    main(measure)
