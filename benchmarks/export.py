"""What eight bits save and cost: ``python -m benchmarks.export [--quick] [--json]``.

Latency is of the network alone, one frame a call, both files taking turns in one run. Losses are
float minus 8-bit on drives that were not learned from, judged by the upper bound of a paired
bootstrap over drives. The model is trained first and kept in a scratch folder, BENCHMARK_CACHE.
Real drives are taken from the folder that BENCHMARK_DRIVES names; without it they are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks import trained
from benchmarks.common import Row, main, note, row
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.detection.families import output_names
from workbench.detection.model import Predictions
from workbench.detection.predictor import OnnxPredictor, TorchPredictor, predict_frames
from workbench.detection.preprocessing import Pixels, preprocess_batch
from workbench.evaluation.metrics import Evaluation, evaluate, paired_difference
from workbench.evaluation.results import EvaluationSettings
from workbench.export import calibration, exporter, latency
from workbench.export.formats import INPUT_NAME, export_fp32
from workbench.export.gate import LossLimits
from workbench.export.parity import MAX_DB, ReferenceSample, decibels, signal_energy
from workbench.export.quantization import CalibratedModel, export_int8_target, fake_quantize
from workbench.records.dataset import Dataset
from workbench.records.frames import Role

DRIVES = "BENCHMARK_DRIVES"
LIMITS = LossLimits()


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes a hardly trained model and fewer frames."""
    rows = on("simulated drives", *trained.on_builtin(quick=quick), quick=quick)
    folder = os.environ.get(DRIVES)
    if folder and Path(folder).is_dir():
        return rows + on("real drives", *trained.on_folder(Path(folder), quick=quick), quick=quick)
    note(f"real drives skipped: {DRIVES} names no folder of drives")
    return rows


def on(
    name: str, workspace: Workspace, dataset: Dataset, predictor: TorchPredictor, *, quick: bool
) -> list[Row]:
    """All figures of one model on its own drives."""
    picked = calibration.pick_calibration_frames(dataset, 16 if quick else 128, safety_slices=())
    spec = predictor.preprocessing
    pixels = exporter.fit_images(calibration.calibration_images(workspace, dataset, picked), spec)
    fresh = exporter.held_out_images(dataset, picked, 8 if quick else 32, spec)
    fp32 = export_fp32(predictor)
    int8 = CalibratedModel(fp32, pixels).file()
    target = export_int8_target(predictor, pixels)
    rows = [
        *speed(fp32, int8, runs=30 if quick else 200),
        *losses(workspace, dataset, {"fp32": fp32, "int8": int8}, resamples=200 if quick else 1000),
        *numbers(predictor, fp32, int8, target, pixels, fresh),
        repeats(predictor, dataset, pixels, int8, fp32, times=2 if quick else 10),
    ]
    return [Row(**{**vars(found), "name": f"{found.name}, {name}"}) for found in rows]


def speed(fp32: bytes, int8: bytes, *, runs: int) -> list[Row]:
    rows = []
    for threads in (1, 2):
        found = latency.measure_latency({"fp32": fp32, "int8": int8}, runs=runs, threads=threads)[
            "models"
        ]
        for which, goal in (("median", 0.5), ("p99", None)):
            ours, peer = (found[name][f"{which}_ms"] for name in ("int8", "fp32"))
            rows.append(
                row(
                    f"INT8 latency, {which}, {threads} threads",
                    ours,
                    "ms",
                    peer=peer,
                    peer_name="FP32 in ONNX Runtime",
                    goal=f"<= {goal:g}" if goal else "",
                    met=ours / peer <= goal if goal else None,
                )
            )
    began = latency.measure_cold_start({"fp32": fp32, "int8": int8}, threads=2)
    for what, unit in (("cold_start_ms", "ms"), ("memory_mib", "MiB")):
        ours, peer = began["int8"][what], began["fp32"][what]
        rows.append(row(f"INT8 {what[:-3].strip('_')}", ours, unit, peer=peer, peer_name="FP32"))
    share = len(int8) / len(fp32)
    rows.append(
        row(
            "INT8 size",
            len(int8) / 2**20,
            "MiB",
            peer=len(fp32) / 2**20,
            peer_name="FP32",
            goal="<= 0.28",
            met=share <= 0.28,
        )
    )
    return rows


def losses(
    workspace: Workspace, dataset: Dataset, files: dict[str, bytes], *, resamples: int
) -> list[Row]:
    """Points of AP lost: overall, and in the worst slice of enough boxes."""
    judged = dataset.role(Role.SAFETY)
    settings = EvaluationSettings(resamples=resamples)
    found = {
        name: evaluate(
            Predictions(judged, predict_frames(workspace, OnnxPredictor(content), judged.frames)),
            settings=settings,
        )
        for name, content in files.items()
    }
    right, wrong = found["fp32"], found["int8"]
    slices = [
        part
        for part in right.metrics.rows
        if part.cls == "all" and part.slice != "all" and part.boxes >= LIMITS.slice_boxes
    ]
    worst = max(slices, key=lambda part: upper(right, wrong, part.slice), default=None)
    rows = [lost(right, wrong, "all", LIMITS.ap)]
    return rows + ([lost(right, wrong, worst.slice, LIMITS.ap_slice)] if worst else [])


def upper(right: Evaluation, wrong: Evaluation, part: str) -> float:
    high = paired_difference(right, wrong, "ap", part).estimate.high
    return float("inf") if high is None else high


def lost(right: Evaluation, wrong: Evaluation, part: str, limit: float) -> Row:
    ground, difference = right.metrics.at(part), paired_difference(right, wrong, "ap", part)
    where = "all frames" if part == "all" else f"worst slice, {part}"
    value = difference.estimate.value or 0.0
    bound = upper(right, wrong, part)
    what = f"upper bound of AP points lost, {where}, {ground.boxes} boxes (value {100 * value:.2f})"
    if not difference.usable:
        what += f", descriptive: {ground.drives} drives"
    met = bound <= limit if difference.usable else None
    return row(what, 100 * bound, "points", goal=f"<= {100 * limit:g}", met=met)


def numbers(
    predictor: TorchPredictor,
    fp32: bytes,
    int8: bytes,
    target: bytes,
    pixels: Sequence[Pixels],
    fresh: Sequence[Pixels],
) -> list[Row]:
    batch, _ = preprocess_batch(fresh[:8], predictor.preprocessing)
    apart = max(
        float(np.abs(one - other).max())
        for one, other in zip(predictor.raw(batch), OnnxPredictor(fp32).raw(batch), strict=True)
    )
    sample = ReferenceSample(fp32, fresh)
    heads = {"cpu": sample.compare(int8).least_db, "target": sample.compare(target).least_db}
    same = target_against_torch(predictor, target, pixels, batch)
    return [
        row("torch against ONNX FP32", apart, "raw", goal="<= 1e-4", met=apart <= 1e-4),
        *(
            row(f"least SQNR of a head, {name}", least, "dB", goal=">= 30", met=least >= 30)
            for name, least in heads.items()
        ),
        row("target file against torch's", same, "dB", goal=">= 45", met=same >= 45),
    ]


def target_against_torch(
    predictor: TorchPredictor, target: bytes, pixels: Sequence[Pixels], batch: np.ndarray
) -> float:
    """The target file without optimisations against the quantised graph that it was made from."""
    import torch

    graph = fake_quantize(predictor, pixels)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    names = list(output_names(predictor.config))
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for frame in batch:
        found = session.run(names, {INPUT_NAME: frame[None]})
        with torch.inference_mode():
            right = [output.numpy() for output in graph(torch.from_numpy(frame[None]))]
        for workspace, (one, other) in enumerate(zip(right, found, strict=True)):
            signal[workspace] += signal_energy(one)
            noise[workspace] += signal_energy(one - other)
    ratios = [decibels(one, other) for one, other in zip(signal, noise, strict=True)]
    return min(MAX_DB, *ratios)


def repeats(
    predictor: TorchPredictor,
    dataset: Dataset,
    pixels: Sequence[Pixels],
    int8: bytes,
    fp32: bytes,
    *,
    times: int,
) -> Row:
    """Float file, 8-bit file and calibration record, made again and again in this process."""
    first = calibration.pick_calibration_frames(dataset, 64, safety_slices=())
    same = 0
    for _ in range(times):
        again = export_fp32(predictor)
        picked = calibration.pick_calibration_frames(dataset, 64, safety_slices=())
        whole = again == fp32 and CalibratedModel(again, pixels).file() == int8
        same += whole and digest.of_json(picked.model_dump(mode="json")) == digest.of_json(
            first.model_dump(mode="json")
        )
    return row(
        f"bit-identical repeats of {times}", same, "exports", goal=f"{times}", met=same == times
    )


if __name__ == "__main__":
    main(measure)
