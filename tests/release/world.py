"""A model with its whole lineage in records: data, checkpoint, bundle, runs, gate report."""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.core import digest
from workbench.core.types import Json
from workbench.data import FRONT_CAMERA
from workbench.records.base import GateReport, GateResult, Ref, Verdict
from workbench.records.dataset import Dataset, save_dataset
from workbench.records.model_types import (
    Checkpoint,
    Environment,
    ExportBundle,
    NotebookSource,
    StepRun,
    Supplier,
)
from workbench.records.store import Store

RULES: Json = {
    "gates": [
        {"name": "ap50", "kind": "floor", "bound": 0.4, "required": True},
        {"name": "vru-recall", "kind": "floor", "bound": 0.3, "required": True},
    ]
}


@dataclass(frozen=True)
class World:
    store: Store
    dataset: Ref
    bundle: Ref
    gates: Ref

    def report(
        self, payload: Json = RULES, *, run: Json | None = None, judged_at: Json | None = None,
        **changes: object,
    ) -> Ref:  # fmt: skip
        """Another gate report, and the run that made it; ``run`` changes the run's inputs."""
        report = self.store.get(self.gates, GateReport).model_copy(update=changes)
        body = {"rules": payload, **({"operating_point": judged_at} if judged_at else {})}
        content = {"metrics.json": digest.canonical_json(body)}
        ref = self.store.put(report, content)
        if run is not None:
            inputs = {"bundle": self.bundle, "dataset": self.dataset, **run}
            self.store.put(step_run(self.store, "validate", inputs, {"gates": ref}))
        return ref

    def another_bundle(self, weights: bytes = b"other", manifest: bytes = b"{}") -> Ref:
        record = self.store.get(self.bundle, ExportBundle)
        return self.store.put(record, {"int8.cpu.onnx": weights, "manifest.json": manifest})


def step_run(store: Store, step: str, inputs: Json, outputs: Json) -> StepRun:
    source = NotebookSource(name=step, code=digest.of_bytes(step.encode()))
    packages = ("numpy==2.4.6#0a1b2c3d", "torch==2.13.0#0a1b2c3d")
    return StepRun(
        step=step,
        key=digest.of_json([step, inputs, outputs]),
        notebook=store.put(source, {"notebook.ipynb": b"{}"}),
        environment=store.put(
            Environment(python="3.11.7", distributions=packages, machine={"cores": 2})
        ),
        modules="e" * 64,
        parameters={"seed": 0},
        inputs=inputs,
        outputs=outputs,
        threads=1,
    )


def gate(name: str, bound: float, value: float = 0.6, low: float = 0.5) -> GateResult:
    return GateResult(
        name=name,
        verdict=Verdict.PASS if low > bound else Verdict.FAIL,
        n=240,
        unit="boxes",
        value=value,
        bound=bound,
        low=low,
        method="bootstrap over 24 drives, one-sided 95 %",
    )


def make_world(store: Store, *, licence: str = "CC-BY-4.0", supplier: str = "Apache-2.0") -> World:
    empty = Dataset("rides", FRONT_CAMERA, (), (), (), workspace=store.workspace)
    ingested = save_dataset(store, empty, made_by="ingest", licence=licence)
    # What labeling makes of it names no licence of its own.
    dataset = save_dataset(
        store, replace(empty, split={"labelled": True}), made_by="collect", parents=[ingested]
    )
    checkpoint = store.put(
        Checkpoint(
            dataset=dataset,
            classes=("car", "pedestrian"),
            architecture={},
            training={"steps": 8},
            preprocessing={},
            supplier=Supplier(
                origin="pypi:lite0", revision="0.1.0", licence=supplier, weights="b" * 64
            ),
        ),
        {"weights.safetensors": b"w"},
    )
    bundle = store.put(
        ExportBundle(checkpoint=checkpoint, calibration=dataset, classes=("car",), parity={}),
        {"int8.cpu.onnx": b"i" * 100, "fp32.onnx": b"f" * 400, "manifest.json": b"{}"},
    )
    report = GateReport(
        candidate=bundle,
        reference=None,
        dataset=dataset,
        rules=digest.of_json(RULES),
        verdict=Verdict.PASS,
        gates=(gate("ap50", 0.4), gate("vru-recall", 0.3)),
    )
    gates = store.put(report, {"metrics.json": digest.canonical_json({"rules": RULES})})
    store.put(step_run(store, "train", {"dataset": dataset}, {"checkpoint": checkpoint}))
    store.put(step_run(store, "export", {"checkpoint": checkpoint}, {"bundle": bundle}))
    inputs = {"bundle": bundle, "dataset": dataset}
    store.put(step_run(store, "validate", inputs, {"gates": gates}))
    return World(store, dataset, bundle, gates)
