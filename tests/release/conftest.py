"""A bundle record with its gate report; what the files hold does not matter to a release."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workbench.core import digest
from workbench.records.base import GateReport, GateResult, Ref, Verdict, make_ref
from workbench.records.model_types import ExportBundle
from workbench.records.store import Store

DATASET, CHECKPOINT = make_ref("dataset", "d" * 64), make_ref("checkpoint", "c" * 64)
RULES = {"gates": [{"name": "map"}]}
METRICS = {"metrics.json": digest.canonical_json({"rules": RULES})}
FILES = {"fp32.onnx": b"f" * 400, "int8.cpu.onnx": b"i" * 100, "manifest.json": b"{}"}


def gate(verdict: Verdict, *, required: bool = True) -> GateResult:
    return GateResult(
        name="map",
        verdict=verdict,
        n=10,
        unit="drives",
        value=0.5,
        bound=0.4,
        method="bootstrap",
        required=required,
    )


@pytest.fixture
def bundle(store: Store) -> Ref:
    record = ExportBundle(checkpoint=CHECKPOINT, calibration=DATASET, classes=("car",), parity={})
    return store.put(record, FILES)


@pytest.fixture
def judge(store: Store) -> Callable[..., Ref]:
    def make(candidate: Ref, verdict: Verdict = Verdict.PASS) -> Ref:
        report = GateReport(
            candidate=candidate,
            reference=None,
            dataset=DATASET,
            rules=digest.of_json(RULES),
            verdict=verdict,
            gates=(gate(verdict),),
        )
        return store.put(report, METRICS)

    return make
