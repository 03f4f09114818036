"""Prediction with any model: torch from a checkpoint, or ONNX Runtime from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError
from workbench.core.workspace import Workspace
from workbench.detection import models
from workbench.detection import preprocessing as golden
from workbench.detection.boxes import clip_boxes
from workbench.detection.config import DetectorConfig, from_onnx_metadata
from workbench.detection.models import Detections, decode
from workbench.detection.preprocessing import (
    LetterboxTransform,
    Pixels,
    Preprocessing,
    load_rgb,
    preprocess_batch,
)
from workbench.records.base import Ref
from workbench.records.dataset import media_path
from workbench.records.frames import Box, Frame
from workbench.records.model_types import Checkpoint, Supplier
from workbench.records.types import Prediction

if TYPE_CHECKING:
    from workbench.detection.detector import Detector
    from workbench.records.store import Store

Progress = Callable[[int, int], None]


class Predictor(Protocol):
    """Finds boxes in images of any size."""

    @property
    def config(self) -> DetectorConfig: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    def predict(self, images: Sequence[Pixels]) -> list[Detections]:
        """RGB uint8 ``[height, width, 3]`` images to detections in pixels of each image."""
        ...


class _BasePredictor:
    """What both predictors share: everything but the network itself."""

    def __init__(self, config: DetectorConfig, preprocessing: Preprocessing) -> None:
        self.config = config
        self.preprocessing = preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes

    def predict(self, images: Sequence[Pixels]) -> list[Detections]:
        if not images:
            return []
        batch, placements = preprocess_batch(images, self.preprocessing)
        found = decode(self.raw(batch), self.config)
        return [
            detections_to_image(detections, placement, image)
            for detections, placement, image in zip(found, placements, images, strict=True)
        ]

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Network input ``[n, 3, height, width]`` to raw maps, see `Detector.forward`."""
        raise NotImplementedError


class TorchPredictor(_BasePredictor):
    """A float detector in torch.

    Args:
        detector: Is put into evaluation mode.
        ref: The checkpoint it came from, where there is one.
        supplier: Whose part the network is, where that checkpoint says so.
    """

    def __init__(
        self,
        detector: Detector,
        preprocessing: Preprocessing,
        *,
        ref: Ref | None = None,
        supplier: Supplier | None = None,
    ) -> None:
        super().__init__(detector.config, preprocessing)
        self.detector = detector.eval()
        self.ref = ref
        self.supplier = supplier

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        import torch

        with torch.inference_mode():
            return [output.numpy() for output in self.detector(torch.from_numpy(batch))]

    def embed(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """One vector a frame from the pyramid's maps, ``[n, d]``, see `detector.pooled`."""
        import torch

        from workbench.detection.detector import pool_features

        batch, _ = preprocess_batch(images, self.preprocessing)
        with torch.inference_mode():
            vectors: NDArray[np.float32] = pool_features(
                self.detector.features(torch.from_numpy(batch))
            ).numpy()
        return vectors


class OnnxPredictor(_BasePredictor):
    """An exported detector in plain ONNX Runtime; its contract is read from the file.

    Args:
        source: A file, or a model's bytes.
        threads: For one operator; 1 gives the same bits everywhere on one machine class.
    """

    def __init__(self, source: Path | bytes, *, threads: int = 2) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        where = source if isinstance(source, Path) else "ONNX bytes"
        try:
            self._session = onnxruntime.InferenceSession(
                str(source) if isinstance(source, Path) else source,
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # ONNX Runtime's errors share no public base
            raise DataError(f"ONNX Runtime cannot load the model: {error}", where=where) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        config, preprocessing = from_onnx_metadata(metadata, where=where)
        golden.check_metadata(metadata, preprocessing)
        super().__init__(config, preprocessing)
        inputs = self._session.get_inputs()
        self._input = inputs[0].name
        self._batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        names = list(models.output_names(self.config))
        if self._batch is None:
            return list(self._session.run(names, {self._input: batch}))
        parts: list[list[Any]] = [
            self._session.run(names, {self._input: chunk})
            for chunk in _padded_chunks(batch, self._batch)
        ]
        return [np.concatenate(maps)[: len(batch)] for maps in zip(*parts, strict=True)]


def load_checkpoint(store: Store, ref: Ref) -> TorchPredictor:
    """The detector of a `Checkpoint` record, read from safetensors only."""
    import safetensors.torch
    from safetensors import SafetensorError

    record = store.get(ref, Checkpoint)
    path = store.payload(ref, "weights.safetensors")
    config = DetectorConfig.model_validate(record.architecture)
    try:
        detector = models.find_family(config.architecture).build(config)
        detector.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DataError(
            f"weights do not fit the recorded architecture: {error}",
            where=ref,
            hint="The checkpoint was made by another version of the workbench; train again",
        ) from error
    spec = Preprocessing.model_validate(record.preprocessing)
    return TorchPredictor(detector, spec, ref=ref, supplier=record.supplier)


def predict_frames(
    place: Workspace,
    predictor: Predictor,
    frames: Sequence[Frame],
    *,
    batch: int = 16,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Boxes on the frames of a dataset, in the order of ``frames``, best first within each.

    Images are decoded in threads while the model runs.
    """
    predictions: list[Prediction] = []
    done = 0
    for chunk, images in read_batches(place, frames, batch):
        for frame, found in zip(chunk, predictor.predict(images), strict=True):
            predictions.extend(_to_predictions(frame, found, predictor.classes))
        done += len(chunk)
        if progress:
            progress(done, len(frames))
    return predictions


def read_batches(
    place: Workspace, frames: Sequence[Frame], batch: int
) -> Iterator[tuple[Sequence[Frame], list[Pixels]]]:
    """Frames with their decoded images, ``batch`` at a time, one batch read ahead."""
    chunks = [frames[start : start + batch] for start in range(0, len(frames), batch)]
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:
        waiting = [pool.submit(load_rgb, media_path(place, frame)) for frame in frames[:batch]]
        for index, chunk in enumerate(chunks):
            current = waiting
            following = chunks[index + 1] if index + 1 < len(chunks) else ()
            waiting = [pool.submit(load_rgb, media_path(place, frame)) for frame in following]
            yield chunk, [future.result() for future in current]


def detections_to_image(
    found: Detections, placement: LetterboxTransform, image: Pixels
) -> Detections:
    """Detections from network pixels to pixels of ``image``, cut at its edges."""
    height, width = image.shape[:2]
    boxes = clip_boxes(placement.to_image(found.boxes), width, height)
    whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # none left in the padding
    return Detections(boxes[whole].astype(np.float32), found.scores[whole], found.classes[whole])


def _to_predictions(
    frame: Frame, found: Detections, classes: tuple[str, ...]
) -> Iterator[Prediction]:
    for (x1, y1, x2, y2), score, number in zip(
        found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
    ):
        box = Box(x=x1, y=y1, w=x2 - x1, h=y2 - y1)
        yield Prediction(frame=frame.id, cls=classes[number], box=box, score=score)


def _padded_chunks(batch: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(batch), size):
        chunk = batch[start : start + size]
        missing = size - len(chunk)
        yield np.concatenate([chunk, np.repeat(chunk[-1:], missing, 0)]) if missing else chunk
