"""What eight bits save and cost: ``python -m benchmarks.export [--quick] [--json]``.

Latency is of the network alone, one frame a call, all models taking turns in one run. The network
has its random first weights, which changes neither size nor speed; what quantising costs in
accuracy is measured on trained weights by every run's `validate` step, and not here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.export import latency
from workbench.export.onnx_file import INPUT, export_fp32, quietly
from workbench.export.quantise import int8_cpu
from workbench.perception.contract import DetectorConfig
from workbench.perception.predictor import OnnxPredictor, TorchPredictor
from workbench.perception.preprocessing import Pixels, Preprocessing, load_rgb, prepare_batch

Row = dict[str, Any]
CLASSES = tuple(f"class-{number}" for number in range(10))


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` calibrates with fewer frames and times fewer runs."""
    images = frames(16 if quick else 64)
    predictor = network()
    fp32 = export_fp32(predictor)
    ours = int8_cpu(fp32, images)
    plain = default_quantisation(fp32, images, predictor.preprocessing)
    files = {"fp32": fp32, "ours": ours, "plain": plain}
    times = latency.measure(files, runs=30 if quick else 150)["models"]
    median = {name: found["median_ms"] for name, found in times.items()}
    wrong = {name: error(files[name], predictor, images[:8]) for name in ("ours", "plain")}
    size = {name: len(content) / 2**20 for name, content in files.items()}
    default = "quantize_static with its defaults"
    return [
        row(
            "INT8 latency, median",
            median["ours"],
            median["fp32"],
            "FP32 in ONNX Runtime",
            "ms",
            0.5,
        ),
        row("INT8 size", size["ours"], size["fp32"], "FP32", "MiB", 0.28),
        row("INT8 latency, median", median["ours"], median["plain"], default, "ms", 1.05),
        row(
            "INT8 error of raw maps", wrong["ours"], wrong["plain"], default, "share of range", 1.0
        ),
    ]


def network() -> TorchPredictor:
    import torch

    from workbench.perception.detector import Detector

    torch.manual_seed(0)
    return TorchPredictor(Detector(DetectorConfig(classes=CLASSES)), Preprocessing())


def frames(count: int) -> list[Pixels]:
    """Evenly spaced frames of simulated drives."""
    from workbench.simulation.drives import write_drives

    with tempfile.TemporaryDirectory() as folder:
        write_drives(Path(folder), "tiny")
        files = sorted(path for path in (Path(folder) / "images").rglob("*.*") if path.is_file())
        return [load_rgb(files[index * len(files) // count]) for index in range(count)]


def default_quantisation(fp32: bytes, images: list[Pixels], spec: Preprocessing) -> bytes:
    """What one gets from ONNX Runtime's quantiser without choosing anything."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = iter([prepare_batch([image], spec)[0] for image in images])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.inputs, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, quietly():
        path = Path(folder) / "int8.onnx"
        quantize_static(onnx.load_from_string(fp32), path, Reader())
        return path.read_bytes()


def error(content: bytes, predictor: TorchPredictor, images: list[Pixels]) -> float:
    """Mean distance from the network's raw maps, as a share of each map's range."""
    batch, _ = prepare_batch(images, predictor.preprocessing)
    found = OnnxPredictor(content).raw(batch)
    shares = [
        np.abs(actual - expected).mean() / np.ptp(expected)
        for expected, actual in zip(predictor.raw(batch), found, strict=True)
    ]
    return float(np.mean(shares))


def row(name: str, ours: float, peer: float, peer_name: str, unit: str, most: float) -> Row:
    ratio = ours / peer
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "peer_method": "measured",
        "ratio": ratio,
        "unit": unit,
        "goal": f"<= {most:g}",
        "met": ratio <= most,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer frames and runs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    chosen = parser.parse_args(arguments)
    rows, cpu = measure(chosen.quick), latency.cpu()
    if chosen.json:
        print(json.dumps({"cpu": cpu, "rows": rows}))
        return
    print(f"{cpu['name']}: {' '.join(cpu['flags'])}")
    for found in rows:
        verdict = "met" if found["met"] else "MISSED"
        print(
            f"{found['name']}: {found['ours']:.4g} {found['unit']} against {found['peer']:.4g} "
            f"({found['peer_name']}): {found['ratio']:.3f}, goal {found['goal']}: {verdict}"
        )


if __name__ == "__main__":
    main()
