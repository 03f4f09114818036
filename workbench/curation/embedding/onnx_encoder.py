"""Any ONNX file that turns pictures into vectors, in plain ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from workbench import digest
from workbench.curation.embedding.encoder import Grid
from workbench.curation.embedding.images import (
    TILES,
    BoxSource,
    ImageEncoder,
    ImagePreprocessing,
)
from workbench.errors import DataError

METADATA = "image_preprocessing"
"""Name of the file's metadata entry that holds its `ImagePreprocessing` as JSON."""


class OnnxEncoder(ImageEncoder):
    """A network in a file: float32 ``[n, 3, height, width]`` in, vectors out.

    The first output is taken: ``[n, d]``, or maps ``[n, d, h, w]``, or tokens ``[n, t, d]``, of
    which the mean is the vector.

    Args:
        path: The file.
        preprocessing: Where the file's metadata does not tell.
        threads: For one operator; 1 gives the same bits everywhere on one machine class.

    Raises:
        DataError: No ONNX file, or nothing says how a picture becomes its input.
    """

    def __init__(
        self,
        path: Path,
        boxes: BoxSource | None = None,
        grid: Grid = TILES,
        preprocessing: ImagePreprocessing | None = None,
        threads: int = 2,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            data = path.read_bytes()
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no public base
            raise DataError(f"ONNX Runtime cannot load the model: {error}", where=path) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        spec = preprocessing or _told(metadata.get(METADATA), path)
        super().__init__(digest.of_bytes(data), spec, boxes, grid)
        first = self._session.get_inputs()[0]
        self._input, self._output = first.name, self._session.get_outputs()[0].name
        self._batch = first.shape[0] if isinstance(first.shape[0], int) else None
        self._check(first.shape, path)

    def _check(self, shape: list[object], path: Path) -> None:
        width, height = self.image_preprocessing.input_size
        wanted = [self._batch, 3, height, width]
        fits = len(shape) == 4 and all(
            not isinstance(there, int) or there == size
            for there, size in zip(shape, wanted, strict=True)
        )
        if not fits:
            raise DataError(
                f"its input is {shape}, its preprocessing gives {['n', *wanted[1:]]}",
                where=path,
                hint="Give the ImagePreprocessing that the network was trained with",
            )

    def vectors(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        size = self._batch or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            chunk = batch[start : start + size]
            filled = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
            out = self._session.run([self._output], {self._input: filled})[0][: len(chunk)]
            if out.ndim > 2:
                out = out.mean(axis=tuple(range(2, out.ndim)) if out.ndim == 4 else 1)
            parts.append(out.astype(np.float32))
        return np.concatenate(parts)


def _told(text: str | None, path: Path) -> ImagePreprocessing:
    if text is None:
        raise DataError(
            "nothing says how a picture becomes this network's input",
            where=path,
            hint=f"Give an ImagePreprocessing, or put it as JSON into the file's metadata under "
            f"{METADATA!r}",
        )
    try:
        return ImagePreprocessing.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"its {METADATA} cannot be read: {error}", where=path) from error
