"""How long one frame takes here. A side fact: it names the CPU and never enters a digest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import ParameterError
from workbench.perception.predictor import OnnxPredictor

_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def measure(models: Mapping[str, bytes], *, runs: int = 40, threads: int = 2) -> dict[str, Any]:
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
    shape = (1, 3, spec.height, spec.width)
    frame = np.random.default_rng(0).standard_normal(shape, np.float32)
    for predictor in predictors.values():
        for _ in range(5):
            predictor.raw(frame)
    taken: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(runs):
        for name, predictor in predictors.items():
            before = time.perf_counter()
            predictor.raw(frame)
            taken[name].append(1000 * (time.perf_counter() - before))
    return {
        "cpu": cpu(),
        "threads": threads,
        "runs": runs,
        "models": {
            name: {
                "median_ms": round(float(np.median(times)), 3),
                "p99_ms": round(float(np.quantile(times, 0.99)), 3),
            }
            for name, times in taken.items()
        },
    }


def cpu() -> dict[str, Any]:
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
        "flags": [flag for flag in _TELLING if flag in flags],
    }
