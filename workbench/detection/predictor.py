"""Prediction with any model: torch from a checkpoint, or ONNX Runtime from a file.

Both use the same preprocessing and decoding, so evaluation sees what a vehicle would see.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ContractError, DataError
from workbench.core.parsing import read_regular
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.detection import families
from workbench.detection.boxes import clip_boxes
from workbench.detection.bundles import refuse_external_weights
from workbench.detection.config import DetectorConfig, from_onnx_metadata
from workbench.detection.families import Detections, decode
from workbench.detection.preprocessing import (
    LetterboxTransform,
    Pixels,
    Preprocessing,
    check_metadata,
    golden_image,
    load_frame,
    preprocess_batch,
)
from workbench.records.base import Ref
from workbench.records.frames import Box, Frame
from workbench.records.integrity import check_media
from workbench.records.model_types import Checkpoint, Supplier
from workbench.records.types import Prediction

if TYPE_CHECKING:
    from workbench.detection.detector import Detector
    from workbench.records.store import Store

__all__ = ["OnnxPredictor", "Predictor", "TorchPredictor", "load_checkpoint", "predict_frames"]


class Predictor:
    """Finds boxes in images; a subclass implements `raw`, the network itself.

    Args:
        config: Classes, and how to decode raw outputs.
        preprocessing: From an image to the network input.
    """

    def __init__(self, config: DetectorConfig, preprocessing: Preprocessing) -> None:
        self.config = config
        self.preprocessing = preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of class indices."""
        return self.config.classes

    def predict(self, images: Sequence[Pixels]) -> list[Detections]:
        """Detect objects in images.

        Args:
            images: RGB uint8 ``[height, width, 3]``, of any sizes.

        Returns:
            Detections of each image, in pixels of that image.
        """
        if not images:
            return []
        batch, transforms = preprocess_batch(images, self.preprocessing)
        decoded = decode(self.raw(batch), self.config)
        return [
            detections_to_image(detections, transform, image)
            for detections, transform, image in zip(decoded, transforms, images, strict=True)
        ]

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run the network: float32 ``[n, 3, height, width]`` to raw outputs, see `decode`."""
        raise NotImplementedError


class TorchPredictor(Predictor):
    """Predictor of a float model in torch.

    Args:
        detector: The network; set to evaluation mode.
        preprocessing: From an image to the network input.
        ref: Checkpoint record of the model, if any.
        supplier: Origin of the network, if it came from a supplier.
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

        # One image at a time: in larger batches activations leave the processor's cache, which
        # makes an image take twice as long.
        with torch.inference_mode():
            parts = [self.detector(torch.from_numpy(image[None])) for image in batch]
            return [torch.cat(output).numpy() for output in zip(*parts, strict=True)]


class OnnxPredictor(Predictor):
    """Predictor of an exported model in ONNX Runtime; the file carries its contract.

    Args:
        source: ONNX file, or its bytes.
        threads: Threads per operator; 1 gives equal bits on all machines of a CPU class.

    Raises:
        DataError: The file cannot be loaded or has no contract.
        VerificationError: Its weights lie in other files.
        ContractError: This machine's preprocessing gives another tensor than the model expects, or
            its kernels give other answers than where the file was exported.
    """

    def __init__(self, source: Path | bytes, *, threads: int = 2) -> None:
        where = source if isinstance(source, Path) else "ONNX bytes"
        try:
            content = read_regular(source) if isinstance(source, Path) else source
        except (OSError, ValueError) as error:
            raise DataError(f"model file cannot be read: {error}", where=where) from error
        refuse_external_weights(content, where=where)
        try:
            self._session = _open_session(content, threads)
        except Exception as error:  # ONNX Runtime's errors share no public base
            raise DataError(f"ONNX Runtime cannot load the model: {error}", where=where) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        config, preprocessing = from_onnx_metadata(metadata, where=where)
        check_metadata(metadata, preprocessing)
        super().__init__(config, preprocessing)
        inputs = self._session.get_inputs()
        self._input = inputs[0].name
        self._batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None
        if ANSWERS_KEY in metadata:
            _check_answers(self, metadata[ANSWERS_KEY], where)

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        names = list(families.output_names(self.config))
        if self._batch is None:
            return list(self._session.run(names, {self._input: batch}))
        parts: list[list[Any]] = [
            self._session.run(names, {self._input: chunk})
            for chunk in _padded_chunks(batch, self._batch)
        ]
        return [np.concatenate(maps)[: len(batch)] for maps in zip(*parts, strict=True)]


ANSWERS_KEY = "workbench.answers"
"""ONNX metadata: sampled raw outputs for the golden image of `preprocessing`, as JSON."""
_SAMPLED_ANSWERS = 256
_LEAST_ANSWER_DB = 40.0
"""Input noise of 1e-5 changes no answer; saturating sums left 32 dB on a small network."""


def golden_answers(predictor: Predictor) -> str:
    """Raw outputs of a model for the golden image, as JSON for the file's metadata.

    INT8 kernels of some processors give other answers: without VNNI, sums of products of unsigned
    and signed bytes saturate at 16 bits. A machine compares itself when it loads the file.
    """
    batch, _ = preprocess_batch([golden_image()], predictor.preprocessing)
    names = families.output_names(predictor.config)
    return json.dumps(
        {
            name: [float(f"{value:.6g}") for value in _sampled(output)]
            for name, output in zip(names, predictor.raw(batch), strict=True)
        },
        sort_keys=True,
    )


def _sampled(output: NDArray[np.float32]) -> list[float]:
    flat = output.reshape(-1)
    picked = np.linspace(0, flat.size - 1, min(flat.size, _SAMPLED_ANSWERS)).astype(int)
    values: list[float] = flat[picked].tolist()
    return values


def _check_answers(predictor: Predictor, recorded: str, where: object) -> None:
    try:
        pairs = {
            name: (np.array(values), np.array(json.loads(recorded)[name]))
            for name, values in json.loads(golden_answers(predictor)).items()
        }
        noise = {
            name: float(np.square(found - expected).sum() / np.square(expected).sum())
            for name, (found, expected) in pairs.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(
            "golden answers in the model file cannot be read", where=where
        ) from error
    name = max(noise, key=lambda each: noise[each])
    if not noise[name] <= 10 ** (-_LEAST_ANSWER_DB / 10):
        raise ContractError(
            f"this machine computes other outputs than the one that exported the model: output "
            f"{name} is {-10 * math.log10(max(noise[name], 1e-12)):.0f} dB from the golden answers "
            f"where {_LEAST_ANSWER_DB:.0f} dB are required",
            where=where,
            hint="INT8 sums saturate on x86 CPUs without VNNI in some versions of ONNX Runtime: "
            "use the version of the lock file, another CPU, or the bundle's fp32.onnx",
        )


def load_checkpoint(store: Store, ref: Ref) -> TorchPredictor:
    """Load the model of a `Checkpoint` record; weights are read from safetensors only.

    Raises:
        DataError: The weights do not fit the recorded architecture.
    """
    import safetensors.torch
    from safetensors import SafetensorError

    record = store.get(ref, Checkpoint)
    path = store.payload(ref, "weights.safetensors")
    config = DetectorConfig.model_validate(record.architecture)
    try:
        detector = families.find_family(config.architecture).build(config)
        detector.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DataError(
            f"weights do not fit the recorded architecture: {error}",
            where=ref,
            hint="The checkpoint is from another version of the workbench: train again",
        ) from error
    spec = Preprocessing.model_validate(record.preprocessing)
    return TorchPredictor(detector, spec, ref=ref, supplier=record.supplier)


def predict_frames(
    workspace: Workspace,
    predictor: Predictor,
    frames: Sequence[Frame],
    *,
    batch: int = 16,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Predict boxes on frames of a dataset; images are decoded in threads meanwhile.

    Args:
        workspace: Holds the images.
        predictor: The model.
        frames: Frames to predict on.
        batch: Frames per call of the model.
        progress: Called with the number of frames done and in all.

    Returns:
        Predictions in the order of ``frames``, by falling score within each.

    Raises:
        DataError: Images are missing, or are not those that were ingested; it names the frames.
    """
    predictions: list[Prediction] = []
    done = 0
    try:
        for chunk, images in read_batches(workspace, frames, batch):
            for frame, detections in zip(chunk, predictor.predict(images), strict=True):
                predictions.extend(_to_predictions(frame, detections, predictor.classes))
            done += len(chunk)
            if progress:
                progress(done, len(frames))
    except DataError:
        check_media(workspace, frames)  # names all frames that are damaged, not only the first
        raise
    return predictions


def read_batches(
    workspace: Workspace, frames: Sequence[Frame], batch: int
) -> Iterator[tuple[Sequence[Frame], list[Pixels]]]:
    """Frames with their decoded images, ``batch`` at a time; the next batch is read ahead."""
    chunks = [frames[start : start + batch] for start in range(0, len(frames), batch)]
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:

        def decode_later(chunk: Sequence[Frame]) -> list[Future[Pixels]]:
            return [pool.submit(load_frame, workspace, frame) for frame in chunk]

        following = decode_later(frames[:batch])
        for index, chunk in enumerate(chunks):
            current, following = following, decode_later(frames[(index + 1) * batch :][:batch])
            yield chunk, [future.result() for future in current]


def detections_to_image(
    detections: Detections, transform: LetterboxTransform, image: Pixels
) -> Detections:
    """Detections from network pixels to pixels of ``image``, clipped to it."""
    height, width = image.shape[:2]
    boxes = clip_boxes(transform.to_image(detections.boxes), width, height)
    valid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # not inside the padding
    return Detections(
        boxes[valid].astype(np.float32), detections.scores[valid], detections.classes[valid]
    )


def _to_predictions(
    frame: Frame, detections: Detections, classes: tuple[str, ...]
) -> Iterator[Prediction]:
    for (x1, y1, x2, y2), score, number in zip(
        detections.boxes.tolist(),
        detections.scores.tolist(),
        detections.classes.tolist(),
        strict=True,
    ):
        box = Box(x=x1, y=y1, w=x2 - x1, h=y2 - y1)
        yield Prediction(frame=frame.id, cls=classes[number], box=box, score=score)


def _padded_chunks(batch: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(batch), size):
        chunk = batch[start : start + size]
        missing = size - len(chunk)
        yield np.concatenate([chunk, np.repeat(chunk[-1:], missing, 0)]) if missing else chunk


def _open_session(content: bytes, threads: int) -> Any:
    """A session of ONNX Runtime whose INT8 sums are exact on every x86 machine.

    Without VNNI, products of unsigned and signed bytes are added in 16 bits and saturate, so boxes
    would differ from those of the machine that exported the file. The precision mode takes kernels
    that do not; with VNNI it changes nothing.
    """
    try:
        return _session(content, threads, exact=True)
    except Exception:  # files with signed activations cannot saturate, and fail in this mode
        return _session(content, threads, exact=False)


def _session(content: bytes, threads: int, *, exact: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
