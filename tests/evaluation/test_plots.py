"""Plots show the metrics, and the worst frames come first."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from workbench.core import digest
from workbench.detection.model import Predictions
from workbench.evaluation import plots
from workbench.evaluation.gates import GateRules, judge
from workbench.evaluation.metrics import evaluate
from workbench.evaluation.misses import worst_frames
from workbench.records.dataset import media_path

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

BOX = (10.0, 10.0, 60.0, 60.0)


@pytest.fixture(scope="module")
def pair(build, quick):
    case = build.random(8)
    worse = case.predictions[::2]
    return (
        evaluate(
            Predictions(case.dataset, case.predictions, model="int8"),
            settings=quick,
        ),
        evaluate(
            Predictions(case.dataset, worse, model="baseline"),
            settings=quick,
        ),
    )


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_missed_vulnerable_people_come_first_and_drives_alternate(build, quick):
    frames = [build.frame(drive, index) for drive in "ab" for index in range(2)]
    labels = [
        build.label(frames[0], "car", BOX),
        build.label(frames[0], "car", (200, 10, 60, 60)),
        build.label(frames[1], "car", BOX),
        build.label(frames[2], "pedestrian", BOX),
        build.label(frames[3], "pedestrian", BOX),
    ]
    found = [
        build.prediction(frames[3], "pedestrian", BOX, 0.9),
        build.prediction(frames[2], "pedestrian", BOX, 0.2),
        build.prediction(frames[0], "truck", BOX, 0.8),
    ]
    evaluated = evaluate(Predictions(build.dataset(frames, labels), found), settings=quick)
    worst = worst_frames(evaluated)
    assert [each.frame.id for each in worst] == [frames[2].id, frames[0].id]
    assert [label.cls for label in worst[1].missed] == ["car", "car"]
    assert [each.cls for each in worst[1].false_positives] == ["truck"]
    assert len(worst_frames(evaluated, per_drive=2)) == 3
    assert len(worst_frames(evaluated, part="vru")) == 1


def test_slice_plot_has_a_row_for_every_slice_with_ground_truth(pair):
    axis = plots.metrics_by_slice(*pair).axes[0]
    shown = [label.get_text() for label in axis.get_yticklabels()]
    there = [part for part in pair[0].tables if pair[0].metrics.at(part).boxes]
    assert [text.split(" ")[0] for text in shown] == there
    dots = [
        line.get_xdata()[0]
        for line in axis.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    ]
    assert pair[0].metrics.at("vru").recall.value in dots
    assert pair[1].metrics.at("vru").recall.value in dots


def test_curves_end_where_recall_ends(pair):
    figure = plots.pr_curves(pair)
    first = figure.axes[0]
    cls = first.get_title().split(":")[0]
    curve, point = first.lines[0], first.lines[1]
    table = pair[0].tables["all"]
    hits = table.hit[0, table.cls == table.classes.index(cls)].sum()
    assert curve.get_xdata()[-1] == pytest.approx(
        hits / pair[0].metrics.at(cls=cls).boxes, abs=0.01
    )
    assert point.get_ydata()[0] == pair[0].metrics.at(cls=cls).precision.value
    assert "simulated" not in figure.get_suptitle()


def test_gates_are_drawn_with_their_verdicts(pair):
    gate = {"name": "recall", "kind": "floor", "metric": "recall", "bound": 0.1, "min_boxes": 5}
    missing = {"name": "int8", "kind": "int8_loss", "metric": "ap", "margin": 0.1}
    rules = GateRules.model_validate(
        {"schema_version": 1, "evaluation": {"resamples": 100}, "gates": [gate, missing]}
    )
    figure = plots.gate_intervals(judge(rules, pair[0]))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["recall on all: PASS", "int8 on all: INSUFFICIENT EVIDENCE"]
    judged = judge(rules, pair[0])
    more = judged.gates[0].model_copy(update={"name": "incidents"})  # no gate of the rules
    figure = plots.gate_intervals(replace(judged, gates=(*judged.gates, more)))
    assert figure.axes[2].get_title(loc="left") == "incidents on all: PASS"


def test_missed_boxes_are_drawn_on_their_frames(build, quick, workspace):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((288, 480, 3), np.uint8)).save(stream, "JPEG")
    frame = build.frame().model_copy(update={"id": digest.of_bytes(stream.getvalue())})
    path = media_path(workspace, frame)
    path.parent.mkdir(parents=True)
    path.write_bytes(stream.getvalue())
    dataset = build.dataset([frame], [build.label(frame, "car", BOX)])
    figure = plots.worst_misses(workspace, evaluate(Predictions(dataset, []), settings=quick))
    (patch,) = figure.axes[0].patches
    assert (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) == BOX
    found = evaluate(Predictions(dataset, [build.prediction(frame, "car", BOX)]), settings=quick)
    nothing = plots.worst_misses(workspace, found)
    assert nothing.get_suptitle().startswith("No misses")


def test_an_evaluation_without_truth_can_still_be_drawn(build, quick):
    empty = evaluate(Predictions(build.dataset([build.frame()]), []), settings=quick)
    assert plots.pr_curves([empty]).axes
    assert plots.metrics_by_slice(empty).axes
