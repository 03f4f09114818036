"""The network as a `torch.export` program, for teams whose runtime is built on torch.

The archive (``.pt2``) is a ZIP file. What is written here holds tensors and JSON only, and no trace
of where it was made; torch's own reader would unpickle what somebody else put into one, so
`load_program` looks first and takes only files whose digest the caller knows.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.errors import VerificationError
from workbench.export.onnx_file import quietly, traced

if TYPE_CHECKING:
    from workbench.perception.predictor import TorchPredictor

_MADE_BY = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
"""What the exporter notes of our sources: paths, which would make equal models unequal."""
_PICKLE = (b"\x80", b"PK\x03\x04")


def export_program(predictor: TorchPredictor) -> bytes:
    """The float network as a ``.pt2`` archive; equal bytes for equal weights.

    Of any batch size, or of one frame: see `onnx_file.traced`.
    """
    import torch

    program, _ = traced(predictor.detector, predictor.preprocessing, any_batch=True)
    with quietly():
        for node in program.graph.nodes:
            for note in _MADE_BY:
                node.meta.pop(note, None)
        program._example_inputs = None  # would be written as a pickle
        stream = io.BytesIO()
        torch.export.save(program, stream)
    return stream.getvalue()


class Program:
    """A loaded program; feed it as any predictor's ``raw``.

    Args:
        batch: Frames that it takes at a time, None for any number.
    """

    def __init__(self, module: Any, batch: int | None = None) -> None:
        self._module = module
        self._batch = batch

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Network input ``[n, 3, height, width]`` to raw maps.

        Compiled forms of a program check no strides: the batch is laid out before it is given.
        """
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(batch))
            parts = [self._module(part) for part in torch.split(given, self._batch or len(given))]
            return [torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True)]


def load_program(content: bytes, *, sha256: str) -> Program:
    """Load a program that a verified manifest names.

    Args:
        sha256: From the manifest of a bundle whose signature holds.

    Raises:
        VerificationError: It is another file, no archive, or holds something to unpickle.
    """
    import torch

    if digest.of_bytes(content) != sha256:
        raise VerificationError("program is not the one that its manifest names")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                inside = archive.read(name)
                if "/weights/" not in name and inside.startswith(_PICKLE):
                    raise VerificationError(
                        "program holds a pickle, which is never read", where=name
                    )
                if name.endswith(("_config.json",)) and b'"use_pickle": true' in inside:
                    raise VerificationError("program asks for a pickle to be read", where=name)
    except zipfile.BadZipFile as error:
        raise VerificationError("program is no archive") from error
    with quietly():
        program = torch.export.load(io.BytesIO(content))
        (given,) = program.graph_signature.user_inputs
        size = next(node for node in program.graph.nodes if node.name == given).meta["val"].shape[0]
        return Program(program.module(), size if isinstance(size, int) else None)
