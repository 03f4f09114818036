"""Verdicts by slice, and the page: every figure once, pictures inside, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from workbench.core import digest
from workbench.detection.model import Predictions
from workbench.evaluation import plots
from workbench.evaluation.comparison import Comparison
from workbench.evaluation.metrics import evaluate
from workbench.evaluation.results import EvaluationSettings
from workbench.records.dataset import media_path
from workbench.records.frames import Conditions, Light

SETTINGS = EvaluationSettings(resamples=200)
BOX = (10.0, 10.0, 60.0, 60.0)


@pytest.fixture
def compared(build, workspace):
    """By night the second model finds more, by day fewer; dusk has three drives."""
    frames, labels, found = [], [], ([], [])
    for light, drives in ((Light.DAY, 20), (Light.NIGHT, 20), (Light.DUSK, 3)):
        for drive in range(drives):
            stream = io.BytesIO()
            grey = np.full((288, 480, 3), 5 * len(frames), np.uint8)  # 43 frames of own bytes
            Image.fromarray(grey).save(stream, "PNG")
            frame = build.frame(
                f"{light}<{drive}>",
                id=digest.of_bytes(stream.getvalue()),
                conditions=Conditions(light=light),
                suffix=".png",
            )
            path = media_path(workspace, frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.getvalue())
            frames.append(frame)
            labels.append(build.label(frame, "car", BOX))
            sides = {Light.DAY: (drive >= 2, drive >= 14), Light.NIGHT: (drive >= 14, drive >= 2)}
            for boxes, seen in zip(found, sides.get(light, (True, False)), strict=True):
                if seen:
                    boxes.append(build.prediction(frame, "car", BOX))
    dataset = build.dataset(frames, labels)
    return Comparison(
        *(
            evaluate(Predictions(dataset, boxes, model=name), settings=SETTINGS)
            for name, boxes in zip(("<old>", "new"), found, strict=True)
        )
    )


def test_slices_are_better_worse_or_unknown(compared):
    verdicts = compared.verdicts()
    assert verdicts["light=night"] == "better"
    assert verdicts["light=day"] == "worse"
    assert verdicts["light=dusk"] == "unknown", "three drives say nothing about others"
    assert verdicts["all"] == "unknown"
    same = Comparison(compared.first, compared.first).verdicts()
    assert set(same.values()) == {"unknown"}


def test_the_page_stands_alone_and_says_what_is_known(compared, workspace, tmp_path):
    page = compared.report(tmp_path / "page.html", workspace, pictures=4).read_text()
    assert "&lt;old&gt;" in page
    assert "<old>" not in page
    assert not re.search(r"day<\d", page), "names of drives are escaped"
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(pictures) == 4
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).width == 640
    flipped = compared.flipped()
    assert f"{len(flipped) - 4} more frames changed" in page
    for name, verdict in compared.verdicts().items():
        assert re.search(rf"<td>{re.escape(name)}</td>.{{0,60}}>{verdict}", page), name
    assert "Clearly better on light=night" in page


def test_a_page_without_changes_says_so(compared, workspace, tmp_path):
    same = Comparison(compared.first, compared.first)
    assert "No frame changed" in same.report(tmp_path / "page.html", workspace).read_text()
    assert plots.flipped_frames(workspace, same) is None


def test_changed_frames_are_drawn_one_of_a_drive(compared, workspace):
    figure = plots.flipped_frames(workspace, compared, count=3)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == 3
    assert all(title.endswith("1 lost, 0 gained") for title in titles)
