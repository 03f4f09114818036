"""An extra for Intel machines: OpenVINO's own files, converted here and run on this CPU.

Needs ``pip install workbench[openvino]``. Nothing is fetched and nothing is reported to anyone.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ContractError, ParameterError
from workbench.export.fidelity import CEILING_DB, decibels, energy
from workbench.export.pairing import paired
from workbench.perception.predictor import OnnxPredictor

XML, BIN = "int8.openvino.xml", "int8.openvino.bin"
LEAST_DB = 30.0
_LAYER = re.compile(rb'(<layer id="(\d+)" name=")[^"]*(" type="(Constant|Const|Convert|\w+)")')


def available() -> bool:
    return importlib.util.find_spec("openvino") is not None


def convert(onnx_file: bytes) -> dict[str, bytes]:
    """An ONNX file as OpenVINO's two files; equal bytes for equal files.

    Raises:
        ParameterError: OpenVINO is not installed.
    """
    if not available():
        raise ParameterError(
            "OpenVINO is not installed", hint="pip install 'workbench[openvino]', or leave it out"
        )
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "model.onnx", Path(folder) / XML
        source.write_bytes(onnx_file)
        model = openvino.convert_model(source)
        openvino.save_model(model, made, compress_to_fp16=False)
        # Its names count what the process made before; layers refer to each other by number.
        named = _LAYER.sub(rb"\1layer_\2\3", made.read_bytes())
        return {XML: named, BIN: made.with_suffix(".bin").read_bytes()}


class OpenVino:
    """A converted model on this CPU, in float32 where it is not int8."""

    def __init__(self, files: dict[str, bytes], *, threads: int = 2) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(files[XML], files[BIN])
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self._model: Any = core.compile_model(model, "CPU", settings)

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Network input ``[n, 3, height, width]`` to raw maps."""
        found = self._model(np.ascontiguousarray(batch))
        return [np.array(found[output]) for output in self._model.outputs]


def verify(files: dict[str, bytes], onnx_file: bytes, batch: NDArray[np.float32]) -> str:
    """Run both on the same input; what was found, in words, for the target matrix.

    Raises:
        ContractError: OpenVINO reads the file otherwise.
    """
    model = OnnxPredictor(onnx_file)
    right, wrong = paired(model.raw(batch), OpenVino(files).raw(batch), model.config)
    ratios = [
        decibels(energy(one), energy(one - other)) for one, other in zip(right, wrong, strict=True)
    ]
    if min(ratios) < LEAST_DB:
        raise ContractError(f"OpenVINO is {min(ratios):.1f} dB from ONNX Runtime", where=XML)
    least = "equal" if min(ratios) >= CEILING_DB else f"{min(ratios):.0f} dB apart at worst"
    return f"run on this CPU in OpenVINO, {least} from ONNX Runtime on {len(batch)} frames"
