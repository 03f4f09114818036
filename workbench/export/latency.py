"""Latency and memory of exported files on this machine; never part of a digest."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from workbench.core.errors import DataError, ParameterError
from workbench.core.types import Json
from workbench.detection.predictor import OnnxPredictor
from workbench.detection.preprocessing import Pixels, input_range
from workbench.export.parity import ReferenceSample

__all__ = ()

_DEGRADATIONS = ("clean", "noise", "dark")
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_COLD_START_SCRIPT = """
import sys, time, numpy, onnxruntime, psutil
process = psutil.Process()
before, began = process.memory_info().rss, time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
frame = session.get_inputs()[0]
shape = [side if isinstance(side, int) else 1 for side in frame.shape]
session.run(None, {frame.name: numpy.zeros(shape, numpy.float32)})
elapsed = time.perf_counter() - began
print(1000 * elapsed, (process.memory_info().rss - before) / 2**20)
"""


def measure_latency(models: Mapping[str, bytes], *, runs: int = 40, threads: int = 2) -> Json:
    """Latency of the networks alone, one frame per call, in ONNX Runtime on this CPU.

    The models take turns, so that a busy machine affects all of them alike. It still raises all
    values: compare ratios, and only within one call.

    Args:
        models: ONNX files by name.
        runs: Calls of each model.
        threads: Of each session.

    Returns:
        ``{"cpu", "threads", "runs", "models": {name: {"median_ms", "p99_ms"}}}``.

    Raises:
        ParameterError: No models or no runs.
    """
    if not models or runs < 1:
        raise ParameterError("nothing to measure", hint="Give at least one model and one run")
    predictors = {name: OnnxPredictor(content, threads=threads) for name, content in models.items()}
    spec = next(iter(predictors.values())).preprocessing
    low, high = input_range(spec)
    shape = (1, 3, spec.height, spec.width)
    frame = np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)
    for predictor in predictors.values():
        for _ in range(5):
            predictor.raw(frame)
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(runs):
        for name, predictor in predictors.items():
            times[name].append(_elapsed_ms(lambda predictor=predictor: predictor.raw(frame)))  # type: ignore[misc]
    return {
        "cpu": cpu_info(),
        "threads": threads,
        "runs": runs,
        "models": {name: _distribution(values) for name, values in times.items()},
    }


def measure_cold_start(
    models: Mapping[str, bytes], *, threads: int = 2
) -> dict[str, dict[str, float]]:
    """Cost of a model's first frame, each in a process of its own.

    Args:
        models: ONNX files by name.
        threads: Of each session.

    Returns:
        By name ``cold_start_ms``, from the session's creation to the first raw outputs, and
        ``memory_mib``, the growth of the process.

    Raises:
        DataError: A process failed.
    """
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for name, content in models.items():
            path.write_bytes(content)
            command = [sys.executable, "-c", _COLD_START_SCRIPT, str(path), str(threads)]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode:
                raise DataError(f"the model cannot be run: {process.stderr[-300:]}", where=name)
            elapsed, growth = map(float, process.stdout.split())
            results[name] = {"cold_start_ms": round(elapsed, 1), "memory_mib": round(growth, 1)}
    return results


def measure_degraded(
    fp32: bytes,
    int8: bytes,
    images: Sequence[Pixels],
    *,
    threads: int = 2,
    seed: int = 0,
) -> dict[str, Json]:
    """Latency and agreement of both files on clean, noisy and dark frames.

    A network takes the same time for any image, but suppression does not; and ranges that were made
    on good images need not hold on bad ones.

    Args:
        fp32: The float file.
        int8: The INT8 file.
        images: RGB uint8 frames.
        threads: Of each session.
        seed: Of the noise.

    Returns:
        By kind ``agreement`` of boxes in [0, 1] or None, ``sqnr_db`` of the worst output, and for
        ``fp32`` and ``int8`` the time from pixels to boxes as ``median_ms`` and ``p99_ms``.
    """
    predictors = {
        "fp32": OnnxPredictor(fp32, threads=threads),
        "int8": OnnxPredictor(int8, threads=threads),
    }
    results: dict[str, Json] = {}
    for kind in _DEGRADATIONS:
        degraded = [_degrade(image, kind, seed + number) for number, image in enumerate(images)]
        fidelity = ReferenceSample(fp32, degraded, threads=threads).compare(int8)
        row: Json = {"agreement": fidelity.agreement, "sqnr_db": fidelity.least_db}
        for name, predictor in predictors.items():
            predictor.predict(degraded[:1])
            times = [
                _elapsed_ms(lambda image=image: predictor.predict([image]))  # type: ignore[misc] # noqa: B023
                for image in degraded
            ]
            row[name] = _distribution(times)
        results[kind] = row
    return results


def _degrade(image: Pixels, kind: str, seed: int) -> Pixels:
    """``noise`` as of a hot sensor (sigma 20 of 255), ``dark`` at a quarter of the light."""
    if kind == "noise":
        noise = np.random.default_rng(seed).normal(0, 20, image.shape)
        return np.asarray(np.clip(image + noise, 0, 255), np.uint8)
    if kind == "dark":
        return np.asarray(image * np.float32(0.25), np.uint8)
    return image


def _elapsed_ms(call: Callable[[], object]) -> float:
    before = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - before)


def _distribution(times: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(float(np.median(times)), 3),
        "p99_ms": round(float(np.quantile(times, 0.99)), 3),
    }


def cpu_info() -> Json:
    """Name of the CPU, and its features that decide the speed of INT8."""
    facts: dict[str, str] = {}
    source = Path("/proc/cpuinfo")
    if source.exists():
        for line in source.read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip().lower(), value.strip())
    flags = (facts.get("flags") or facts.get("features") or "").split()
    return {
        "name": facts.get("model name", "unknown"),
        "flags": [flag for flag in _CPU_FLAGS if flag in flags],
    }
