"""Labels of real drives: equal to COCO, and too few drives for a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from workbench.detection.model import Predictions
from workbench.evaluation.confidence import OperatingPoint
from workbench.evaluation.gates import judge, load_rules
from workbench.evaluation.metrics import evaluate
from workbench.records.base import Verdict

RULES = Path(__file__).resolve().parents[2] / "pipelines" / "gates.yaml"
CLASSES = ("car", "pedestrian", "cyclist", "truck")
"""Stand-ins, in the order of CamVid's four categories; names do not matter here."""


def test_camvid_metrics_equal_coco_and_gates_are_undecided(build, plain_coco, shared_data):
    source = json.loads((shared_data / "camvid" / "labels.coco.json").read_text())
    random = np.random.default_rng(0)
    frames = {
        each["id"]: build.frame(each["sequence"], workspace, timestamp_us=None)
        for workspace, each in enumerate(source["images"])
    }
    labels, found = [], []
    for each in source["annotations"]:
        frame, cls = frames[each["image_id"]], CLASSES[each["category_id"] - 1]
        x, y, w, h = each["bbox"]
        labels.append(build.label(frame, cls, (x, y, w, h), ignore=bool(each["iscrowd"])))
        if random.uniform() < 0.7:
            moved = (x + random.normal(0, 0.1) * w, y, w * random.uniform(0.8, 1.2), h)
            found.append(build.prediction(frame, cls, moved, float(random.uniform())))
        if random.uniform() < 0.3:
            alarm = (*random.uniform(0, 300, 2), *random.uniform(5, 60, 2))
            found.append(build.prediction(frame, cls, alarm, float(random.uniform())))
    dataset = build.dataset(frames.values(), labels)
    rules = load_rules(RULES)
    evaluated = evaluate(Predictions(dataset, found), settings=rules.evaluation)

    case = build.random(0, drives=1)
    theirs = plain_coco(type(case)(dataset, tuple(found)))
    row = evaluated.metrics.at()
    assert 0.1 < theirs["AP_all"] < 0.9
    assert (row.ap.value, row.ar.value) == (theirs["AP_all"], theirs["AR_all"])
    assert evaluated.metrics.at("size=small").ap.value == theirs["AP_small"]

    point = OperatingPoint(threshold=rules.evaluation.threshold, how="fixed")
    judged = judge(rules, evaluated, reference=evaluated, fp32=evaluated, operating_point=point)
    assert row.drives == 3
    assert {gate.verdict for gate in judged.gates} == {Verdict.INSUFFICIENT}
    ap50 = next(gate for gate in judged.gates if gate.name == "ap50")
    assert ap50.low < ap50.value < ap50.high
    assert not judged.simulated
