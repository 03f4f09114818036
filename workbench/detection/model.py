"""A model of the workspace by its reference, and what it predicts on a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from workbench.core.errors import DataError, ParameterError, RecordError
from workbench.core.parsing import parse_json
from workbench.core.text import counted, html_table
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.bundles import (
    FP32_FILE,
    INT8_CPU_FILE,
    MANIFEST_FILE,
    OperatingPoint,
    operating_point,
    threshold_of,
)
from workbench.detection.predictor import (
    OnnxPredictor,
    Predictor,
    TorchPredictor,
    load_checkpoint,
    predict_frames,
)
from workbench.records.base import Digest, Ref, kind_of, short_ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Role
from workbench.records.held_out import refuse_held_out
from workbench.records.model_types import Checkpoint, ExportBundle, Release
from workbench.records.store import Store
from workbench.records.types import Prediction

__all__ = ["Model", "Predictions"]

_FILES = {"int8": INT8_CPU_FILE, "fp32": FP32_FILE}


@dataclass(frozen=True, repr=False)
class Predictions(Sequence[Prediction]):
    """A model's boxes on a dataset, in pixels of the stored frames.

    A sequence of `Prediction`, in the order of the dataset's frames, best score first within each.

    Attributes:
        dataset: The frames that were predicted on, also those without a box.
        boxes: Every box, down to a score well below any threshold.
        model: Name of the model, as shown in plots and tables.
        threshold: Score from which the model's boxes are acted on, see `Model.threshold`.
    """

    dataset: Dataset
    boxes: Sequence[Prediction]
    model: str = "model"
    threshold: float = CONFIDENCE_THRESHOLD

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Any:
        return self.boxes[index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.boxes)

    @cached_property
    def by_frame(self) -> dict[Digest, tuple[Prediction, ...]]:
        """Boxes of every frame; a frame without any has an empty tuple."""
        grouped: dict[Digest, list[Prediction]] = {frame.id: [] for frame in self.dataset.frames}
        for box in self.boxes:
            grouped[box.frame].append(box)
        return {frame: tuple(boxes) for frame, boxes in grouped.items()}

    def above(self, score: float | None = None) -> Predictions:
        """The boxes with at least this score; by default the model's threshold."""
        score = self.threshold if score is None else score
        return replace(self, boxes=tuple(box for box in self.boxes if box.score >= score))

    def to_pandas(self) -> Any:
        """One row a box: frame, drive, class, score and x, y, w, h in pixels."""
        import pandas as pd

        drives = {frame.id: frame.drive for frame in self.dataset.frames}
        return pd.DataFrame(
            [
                (one.frame, drives[one.frame], one.cls, one.score, *one.box.model_dump().values())
                for one in self.boxes
            ],
            columns=["frame", "drive", "class", "score", "x", "y", "w", "h"],
        )

    def __repr__(self) -> str:
        frames = counted(len(self.dataset), "frame")
        return f"Predictions({self.model!r}: {counted(len(self), 'box', 'boxes')} on {frames})"

    def _repr_html_(self) -> str:
        rows = [
            [cls, f"{len(scores):,}", f"{max(scores):.2f}"]
            for cls in self.dataset.classes
            if (scores := [box.score for box in self.boxes if box.cls == cls])
        ]
        return html_table(repr(self), rows, ["class", "boxes", "highest score"])


class Model:
    """A checkpoint, a bundle or a release of a workspace; read when it is first used.

    Args:
        workspace: Where its record lies.
        ref: Reference of a `Checkpoint`, `ExportBundle` or `Release` record. A release stands for
            its bundle.
        name: As shown in plots and tables; the short reference by default.
        file: For a bundle, which of its models: ``int8`` (as deployed) or ``fp32``.
        threads: Threads of one prediction.

    Raises:
        RecordError: The reference is not of a model, or there is no such record.
    """

    def __init__(
        self,
        workspace: Workspace,
        ref: Ref,
        *,
        name: str = "",
        file: str = "int8",
        threads: int = 2,
    ) -> None:
        kinds = (Checkpoint.KIND, ExportBundle.KIND, Release.KIND)
        if kind_of(ref) not in kinds:
            raise RecordError(
                f"{kind_of(ref)!r} is not a model",
                where=ref,
                hint="A model is a checkpoint, a bundle or a release",
            )
        if file not in _FILES:
            raise ParameterError(f"unknown file {file!r}", hint=f"Files: {', '.join(_FILES)}")
        self.workspace = workspace
        self.ref = ref
        self.name = name or f"{kind_of(ref)}/{ref.partition('/')[2][:12]}"
        self._file = file
        self._threads = threads
        store = Store(workspace)
        self.record: Checkpoint | ExportBundle
        if kind_of(ref) == Release.KIND:
            self._weights = store.get(ref, Release).bundle
        else:
            self._weights = ref
        if kind_of(self._weights) == Checkpoint.KIND:
            self.record = store.get(self._weights, Checkpoint)
        else:
            self.record = store.get(self._weights, ExportBundle)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.record.classes

    @property
    def checkpoint(self) -> Ref:
        """The trained weights behind this model, in float."""
        return self.record.checkpoint if isinstance(self.record, ExportBundle) else self._weights

    @property
    def fp32(self) -> Model:
        """The float file of the same bundle."""
        return type(self)(
            self.workspace,
            self.ref,
            name=f"{self.name} fp32",
            file="fp32",
            threads=self._threads,
        )

    @cached_property
    def operating_point(self) -> OperatingPoint | None:
        """The threshold that the export chose; None for checkpoints and older bundles."""
        store = Store(self.workspace)
        if isinstance(self.record, Checkpoint):
            return None
        if MANIFEST_FILE not in store.payload_names(self._weights):
            return None
        manifest = parse_json(store.read_payload(self._weights, MANIFEST_FILE))
        if not isinstance(manifest, dict):
            raise RecordError("the bundle's manifest is not a JSON object", where=self.ref)
        return operating_point(manifest)

    @property
    def threshold(self) -> float:
        """Score from which a box is acted on; 0.3 where the model has no operating point."""
        return threshold_of(self.operating_point)

    @cached_property
    def predictor(self) -> Predictor:
        """The network: ONNX Runtime for a bundle, torch for a checkpoint."""
        store = Store(self.workspace)
        if isinstance(self.record, Checkpoint):
            return load_checkpoint(store, self._weights)
        content = store.read_payload(self._weights, _FILES[self._file])
        return OnnxPredictor(content, threads=self._threads)

    @property
    def torch_predictor(self) -> TorchPredictor:
        """The float network in torch, also behind a bundle: what embeds and trains."""
        if isinstance(self.predictor, TorchPredictor):
            return self.predictor
        return load_checkpoint(Store(self.workspace), self.checkpoint)

    def predict(
        self, dataset: Dataset, *, name: str = "", progress: Progress | None = None
    ) -> Predictions:
        """Find boxes on every frame of ``dataset``.

        Args:
            dataset: Frames whose images lie in a workspace.
            name: What the predictions are called in plots; the model's name by default.
            progress: Called with the number of frames done and their total.

        Raises:
            DataError: The dataset is in no workspace, or an image cannot be read.
            VerificationError: A frame is blind.
        """
        workspace = dataset.workspace or self.workspace
        if not dataset.frames:
            raise DataError("no frames to predict on", where=dataset.name)
        blind = (Role.BLIND,)  # asked through `workbench.evaluation.blind` only
        refuse_held_out(Store(workspace), dataset.frames, "predictions", roles=blind)
        boxes = predict_frames(workspace, self.predictor, dataset.frames, progress=progress)
        return Predictions(dataset, tuple(boxes), name or self.name, self.threshold)

    def __repr__(self) -> str:
        return f"Model({self.name!r}: {', '.join(self.classes)})"

    def _repr_html_(self) -> str:
        spec = self.predictor.preprocessing
        facts = {
            "record": short_ref(self.ref),
            "weights": short_ref(self.checkpoint),
            "classes": ", ".join(self.classes),
            "input": f"{spec.width} x {spec.height} px",
        }
        if isinstance(self.record, ExportBundle):
            facts["file"] = _FILES[self._file]
        facts["threshold"] = f"{self.threshold:.3g}"
        return html_table(self.name, facts)
