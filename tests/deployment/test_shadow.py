"""A candidate in the shadow: the champion's answers stay the same, and what returns is unbiased."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from workbench.cli import cli
from workbench.core import digest
from workbench.core.errors import ParameterError, ServiceError
from workbench.core.workspace import HOME_VARIABLE, Workspace
from workbench.deployment.runtime import Answer, AnswerBox, AnswerStatus, Runtime, load_bundle
from workbench.deployment.session import InputFrame, frames_from_path
from workbench.deployment.shadow import ShadowPair, ShadowProcess
from workbench.deployment.shadow_estimate import LabelledFrame, estimate_difference, missed
from workbench.deployment.shadow_session import (
    FrameSample,
    disagreement,
    keep_probability,
    run_shadow,
)
from workbench.detection.bundles import INT8_CPU_FILE
from workbench.records.base import make_ref
from workbench.records.dataset import Dataset, save_dataset
from workbench.records.frames import Box, Label, Origin
from workbench.records.model_types import ExportBundle
from workbench.records.store import Store


def manifest(folder: Path) -> str:
    return digest.of_file(folder / "manifest.json")


def content(answer: Answer) -> bytes:
    return answer.model_copy(update={"ms": None}).model_dump_json().encode()


def box(left: float, cls: str = "car", score: float = 0.9) -> AnswerBox:
    return AnswerBox(cls=cls, score=score, xyxy=(left, 0.0, left + 50, 50.0))


def answer(*boxes: AnswerBox, file: str = "f", sequence: str = "s") -> Answer:
    return Answer(file=file, sequence=sequence, status=AnswerStatus.OK, boxes=boxes, by="b")


@pytest.fixture
def pictures(tmp_path: Path) -> list[InputFrame]:
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "pictures" / f"drive{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (96, 160, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.jpg")
    return frames_from_path(tmp_path / "pictures")


def test_the_champion_answers_the_same_bits_with_a_shadow(
    whole: Path, other: Path, pictures: list[InputFrame]
) -> None:
    alone = Runtime([load_bundle(whole)])
    expected = [
        content(
            alone.answer(np.asarray(Image.open(one.path)), file=one.file, sequence=one.sequence)
        )
        for one in pictures
    ]
    candidate = Runtime([load_bundle(other, threads=1)])
    sample = FrameSample(1 << 20, seed=0)
    with ShadowProcess(other, manifest(other), file=INT8_CPU_FILE) as shadow:
        summary = run_shadow(Runtime([load_bundle(whole)]), shadow, pictures, sample)
        assert [content(one) for one in summary.answers] == expected
        assert (summary.compared, summary.dropped) == (len(pictures), 0)
    boxes = {about["file"]: about["candidate"] for about, _ in sample.kept()}
    one = pictures[4]
    seen = candidate.answer(np.asarray(Image.open(one.path)), file=one.file, sequence=one.sequence)
    assert boxes[one.file] == [found.model_dump(mode="json") for found in seen.boxes]
    assert sample.compared == {"drive0": 4, "drive1": 4, "drive2": 4}

    # A shadow that has no time drops frames, and one that died does too; the champion goes on.
    with ShadowProcess(other, manifest(other), file=INT8_CPU_FILE) as shadow:
        shadow.pause()
        image = np.zeros((96, 160, 3), np.uint8)
        start = time.monotonic()
        shown = [shadow.offer(answer(file=str(number)), image) for number in range(10)]
        assert time.monotonic() - start < 5
        assert shown == [True] * 4 + [False] * 6 and shadow.dropped == 6
        shadow.resume()
        assert len(shadow.collect(wait_s=20)) == 4
        os.kill(shadow._process.pid, signal.SIGKILL)
        shadow._process.wait()
        summary = run_shadow(Runtime([load_bundle(whole)]), shadow, pictures, sample)
        assert [content(one) for one in summary.answers] == expected
        assert summary.dropped == 6 + len(pictures)


def test_a_changed_candidate_does_not_start(other: Path) -> None:
    with pytest.raises(ServiceError, match="does not start"):
        ShadowProcess(other, "0" * 64, file=INT8_CPU_FILE)


def test_disagreement_counts_boxes_that_one_model_has() -> None:
    first = (box(0), box(100), box(200, "pedestrian"))
    assert disagreement(first, first) == 0
    assert disagreement(first, (box(2), box(100))) == 1
    assert disagreement(first, (box(0), box(100), box(200))) == 2  # another class
    assert disagreement((), first) == disagreement(first, ()) == 3
    assert missed(first, (box(2), box(300))) == 2
    assert missed(first, ()) == 3 and missed((), first) == 0


def test_frames_return_within_the_bytes_with_known_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "frame.jpg"
    path.write_bytes(b"\xff\xd8" + bytes(998))
    totals, counts = [], []
    for seed in range(100):
        sample = FrameSample(20_500, seed=seed)
        for number in range(200):
            boxes = (box(0),) if number % 10 == 0 else ()
            pair = ShadowPair(answer(*boxes, file=str(number)), answer(file=str(number)))
            sample.offer(pair, InputFrame(path, str(number), "s"))
        kept = sample.kept()
        assert len(kept) == 20 and sample.compared == {"s": 200}
        totals.append(sum(1 / about["probability"] for about, _ in kept))
        arms = [about["arm"] for about, _ in kept]
        counts.append((arms.count("disagreement"), arms.count("random")))
    # The estimated number of frames is right in the mean, whatever was kept.
    assert np.mean(totals) == pytest.approx(200, abs=4 * np.std(totals) / 100**0.5)
    disagreeing, agreeing = np.mean(counts, axis=0)
    assert disagreeing > 6 and agreeing > 6  # of 20 and of 180


def test_the_estimate_is_the_plain_mean_when_everything_was_labelled() -> None:
    frames = [LabelledFrame("a", 1.0, 1), LabelledFrame("a", 1.0, 0), LabelledFrame("b", 1.0, -1),
              LabelledFrame("b", 1.0, 2)]  # fmt: skip
    found = estimate_difference(frames, {"a": 2, "b": 2})
    assert (found.value, found.labels, found.frames, found.drives) == (0.5, 4, 4, 2)
    lonely = estimate_difference(frames[:2], {"a": 2})
    assert lonely.low == -np.inf and lonely.high == np.inf
    for wrong in (LabelledFrame("c", 1.0, 0), LabelledFrame("a", 0.0, 0)):
        with pytest.raises(ParameterError):
            estimate_difference([wrong], {"a": 1})
    with pytest.raises(ParameterError):
        estimate_difference([], {})


def test_the_interval_covers() -> None:
    """A short form of `python -m benchmarks.shadow`, in units of its standard error."""
    rng, covered, trials = np.random.default_rng(18), 0, 400
    for _ in range(trials):
        rates = 0.03 * rng.gamma(2.0, 0.5, 100)
        difference = rng.poisson(rates[:, None], (100, 40)) - rng.poisson(0.02, (100, 40))
        weight = np.where(difference != 0, 10.0, 1.0)
        priority = weight / (1 - rng.random(weight.shape))
        threshold = float(np.partition(priority.ravel(), -301)[-301])
        labelled = [
            LabelledFrame(str(drive), keep_probability(weight[drive, frame], threshold),
                          int(difference[drive, frame]))
            for drive, frame in zip(*np.nonzero(priority > threshold), strict=True)
        ]  # fmt: skip
        found = estimate_difference(labelled, {str(drive): 40 for drive in range(100)})
        covered += found.low <= 0.01 <= found.high
    assert 0.95 - 4 * 0.011 < covered / trials < 0.95 + 4 * 0.011


def test_the_command_estimates_from_the_labels_of_the_dataset(
    car: Workspace, drives: Dataset, whole: Path, other: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(HOME_VARIABLE, str(car.root))
    refs = []
    for folder in (whole, other):
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
        record = ExportBundle(
            checkpoint=make_ref("checkpoint", manifest(folder)), calibration=drives.ref or "",
            classes=drives.classes, parity={},
        )  # fmt: skip
        refs.append(Store(car).put(record, files))
    judged = [frame for frame in drives.frames if frame.role == "safety"]
    labels = [Label(frame=one.id, cls="car", box=Box(x=5, y=30, w=20, h=20), origin=Origin.HUMAN)
              for one in judged]  # fmt: skip
    labelled = replace(drives, name="labelled", labels=tuple(labels), ref=None)
    save_dataset(Store(car), labelled, made_by="test")
    command = ["shadow", *refs, "labelled", "--role", "safety", "-o", str(tmp_path / "back")]
    result = CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert found["compared"] == found["frames"] == len(judged) and found["dropped"] == 0
    assert found["evidence"] == "simulated"  # drawn frames
    lines = (tmp_path / "back" / "frames.jsonl").read_text().splitlines()
    assert len(lines) == sum(found["returned"][arm] for arm in ("disagreement", "random"))
    assert found["difference"]["labels"] == len(lines) == len(judged)  # they fit
    difference = found["difference"]
    assert -1 <= difference["value"] <= 1
    assert (difference["low"], difference["drives"]) == (
        None,
        1,
    )  # one drive says nothing of others
    text = CliRunner().invoke(cli, ["shadow", *refs, drives.name, "--role", "safety"]).output
    assert "label the frames that came back" in text
    refused = CliRunner().invoke(cli, [*command, "--vehicle", "vehicle-1"])
    assert "no account 'vehicle-1'" in str(refused.exception)
