"""Latency and memory of exported files on this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import DataError, ParameterError
from workbench.detection.predictor import OnnxPredictor
from workbench.detection.preprocessing import Pixels, input_range
from workbench.export.parity import ReferenceSample

DEGRADATIONS = ("clean", "noise", "dark")
_COLD_START_SCRIPT = """
import sys, time, numpy, onnxruntime, psutil
here = psutil.Process()
before, began = here.memory_info().rss, time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
frame = session.get_inputs()[0]
shape = [side if isinstance(side, int) else 1 for side in frame.shape]
session.run(None, {frame.name: numpy.zeros(shape, numpy.float32)})
spent = time.perf_counter() - began
print(1000 * spent, (here.memory_info().rss - before) / 2**20)
"""

_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def measure_latency(
    models: Mapping[str, bytes], *, runs: int = 40, threads: int = 2
) -> dict[str, Any]:
    """Latency of the network alone, one frame a call, in plain ONNX Runtime on this CPU.

    The models take turns, so that a busy machine disturbs all of them alike; it still raises all
    figures, so compare ratios, and only within one call.

    Returns:
        ``{"cpu", "threads", "runs", "models": {name: {"median_ms", "p99_ms"}}}``.
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
    taken: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(runs):
        for name, predictor in predictors.items():
            taken[name].append(_elapsed_ms(lambda predictor=predictor: predictor.raw(frame)))  # type: ignore[misc]
    return {
        "cpu": cpu_info(),
        "threads": threads,
        "runs": runs,
        "models": {name: _distribution(times) for name, times in taken.items()},
    }


def measure_cold_start(
    models: Mapping[str, bytes], *, threads: int = 2
) -> dict[str, dict[str, float]]:
    """What a model costs before its second frame, each in a process of its own.

    Returns:
        By name ``cold_start_ms``, from nothing loaded to the first frame's raw maps, ONNX Runtime
        itself being imported already, and ``memory_mib``, what the process grew by.

    Raises:
        DataError: A process died.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in models.items():
            path = Path(folder) / "model.onnx"
            path.write_bytes(content)
            command = [sys.executable, "-c", _COLD_START_SCRIPT, str(path), str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise DataError(f"model cannot be started: {done.stderr[-300:]}", where=name)
            cold, grown = map(float, done.stdout.split())
            found[name] = {"cold_start_ms": round(cold, 1), "memory_mib": round(grown, 1)}
    return found


def measure_degraded(
    fp32: bytes,
    int8: bytes,
    images: Sequence[Pixels],
    *,
    threads: int = 2,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Clean, noisy and dark frames: time from pixels to boxes of both files, and how they agree.

    A network takes as long for any picture, but suppression does not; and ranges that were made
    on good pictures need not hold on bad ones.

    Returns:
        By kind ``agreement`` of boxes in [0, 1] or None, ``sqnr_db`` of the worst output, and
        ``fp32`` and ``int8`` with ``median_ms`` and ``p99_ms``.
    """
    predictors = {
        "fp32": OnnxPredictor(fp32, threads=threads),
        "int8": OnnxPredictor(int8, threads=threads),
    }
    found: dict[str, dict[str, Any]] = {}
    for kind in DEGRADATIONS:
        shown = [degrade_image(image, kind, seed + place) for place, image in enumerate(images)]
        apart = ReferenceSample(fp32, shown, threads=threads).compare(int8)
        row: dict[str, Any] = {"agreement": apart.agreement, "sqnr_db": apart.least_db}
        for name, predictor in predictors.items():
            predictor.predict(shown[:1])
            times = [_elapsed_ms(lambda image=image: predictor.predict([image])) for image in shown]  # type: ignore[misc] # noqa: B023
            row[name] = _distribution(times)
        found[kind] = row
    return found


def degrade_image(image: Pixels, kind: str, seed: int) -> Pixels:
    """``noise`` as of a hot sensor (sigma 20 of 255), ``dark`` at a quarter of the light."""
    if kind == "noise":
        noise = np.random.default_rng(seed).normal(0, 20, image.shape)
        noisy: Pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
        return noisy
    if kind == "dark":
        dark: Pixels = (image * np.float32(0.25)).astype(np.uint8)
        return dark
    return image


def _elapsed_ms(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - before)


def _distribution(times: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(float(np.median(times)), 3),
        "p99_ms": round(float(np.quantile(times, 0.99)), 3),
    }


def cpu_info() -> dict[str, Any]:
    """Name of the CPU and those of its features that decide how fast 8-bit numbers are."""
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
