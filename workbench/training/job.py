"""A training as a folder: what several processes read it from, and where its result lies.

``job.json`` says all but what is large; frames and labels stand beside it as lines of JSON, weights
to begin from as safetensors. The first process writes ``weights.safetensors`` and, last of all,
``result.json``: while that is not there, there is no result.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.perception.contract import DetectorConfig
from workbench.perception.models import registry
from workbench.perception.predictor import TorchPredictor
from workbench.perception.preprocessing import Preprocessing
from workbench.records.base import Digest
from workbench.records.dataset import Dataset, lines, read_lines
from workbench.records.frames import Drive, Frame, Label, LabelSchema
from workbench.records.types import Supplier
from workbench.training.config import TrainingConfig
from workbench.training.loop import train
from workbench.training.trained import Trained, predictor_of
from workbench.workspace import Workspace, write_atomic

JOB, RESULT, TOLD, STATE = "job.json", "result.json", "told.jsonl", "state"
_WEIGHTS, _MODEL, _START = "weights.safetensors", "model.safetensors", "start.safetensors"
_FACTS = ("curves", "frames", "seconds", "images_per_second", "resumed_at", "conditions", "facts")
_MEASURED = ("waited", "peak_mib")


@dataclass(frozen=True)
class Job:
    """What is to be trained; fields as `loop.train` takes them."""

    place: Workspace
    dataset: Dataset
    config: TrainingConfig
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    model: Any = None
    start: TorchPredictor | None = None
    fresh: Collection[Digest] | None = None
    disputed: Collection[Digest] = ()

    def write(self, folder: Path) -> None:
        """Into a folder that every process can read."""
        said: dict[str, Any] = {
            "home": str(self.place.root),
            "name": self.dataset.name,
            "schema": self.dataset.label_schema.model_dump(mode="json"),
            "simulated": self.dataset.simulated,
            "config": asdict(self.config),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "fresh": None if self.fresh is None else sorted(self.fresh),
            "disputed": sorted(self.disputed),
            "model": None,
            "start": None,
        }
        for name in ("drives", "frames", "labels"):
            write_atomic(folder / f"{name}.jsonl", lines(getattr(self.dataset, name)))
        if self.model is not None:
            said["model"] = self._kept(folder / _MODEL, self.model)
            supplier: Supplier | None = getattr(self.model, "supplier", None)
            said["supplier"] = None if supplier is None else supplier.model_dump(mode="json")
        if self.start is not None:
            said["start"] = self._kept(folder / _START, self.start.detector)
        write_atomic(folder / JOB, json.dumps(said).encode())

    def _kept(self, path: Path, model: Any) -> dict[str, Any]:
        write_atomic(path, _as_bytes(model.state_dict()))
        build = registry.find(model.config.architecture).build
        return {"config": model.config.model_dump(mode="json"), "module": build.__module__}


def read(folder: Path) -> Job:
    """The job as it was written, with models of its own."""
    said = json.loads((folder / JOB).read_text())
    schema = LabelSchema.model_validate(said["schema"])
    dataset = Dataset(
        name=said["name"],
        label_schema=schema,
        drives=read_lines(folder / "drives.jsonl", Drive),
        frames=read_lines(folder / "frames.jsonl", Frame),
        labels=read_lines(folder / "labels.jsonl", Label),
        simulated=said["simulated"],
    )
    spec = Preprocessing.model_validate(said["preprocessing"])
    model: Any = None
    start: TorchPredictor | None = None
    if said["model"]:
        model = _model(said["model"], folder / _MODEL, spec).detector
        if said["supplier"]:
            model.supplier = Supplier.model_validate(said["supplier"])
    if said["start"]:
        start = _model(said["start"], folder / _START, spec)
    return Job(
        Workspace(Path(said["home"])), dataset, TrainingConfig.from_values(said["config"]),
        tuple(said["classes"]), spec, model, start, said["fresh"], said["disputed"],
    )  # fmt: skip


def carry_out(folder: Path) -> None:
    """Train what the folder describes, as one of its processes; the first writes the result."""
    from workbench.training.distributed import rank_and_size

    job, first = read(folder), rank_and_size()[0] == 0
    teller = _Teller(folder / TOLD) if first else None
    trained = train(
        job.place,
        job.dataset,
        job.config,
        classes=job.classes,
        preprocessing=job.preprocessing,
        model=job.model,
        start=job.start,
        fresh=job.fresh,
        disputed=job.disputed,
        checkpoint_dir=folder / STATE,
        progress=teller.progress if teller else None,
        log=teller.log if teller else None,
    )
    if first:
        write_result(folder, trained)


def write_result(folder: Path, trained: Trained) -> None:
    write_atomic(folder / _WEIGHTS, _as_bytes(trained.weights))
    said = {name: getattr(trained, name) for name in (*_FACTS, *_MEASURED)}
    said["detector"] = trained.detector.model_dump(mode="json")
    write_atomic(folder / RESULT, json.dumps(said).encode())


def read_result(folder: Path, job: Job) -> Trained:
    """What the processes have trained together."""
    from safetensors.torch import load_file

    said = json.loads((folder / RESULT).read_text())
    return Trained(
        detector=DetectorConfig.model_validate(said.pop("detector")),
        preprocessing=job.preprocessing,
        config=job.config,
        weights=load_file(folder / _WEIGHTS),
        supplier=getattr(job.model, "supplier", None),
        **said,
    )


class _Teller:
    """Writes what `train` tells, a line each, for whoever started the processes."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", buffering=1)

    def progress(self, done: int, total: int) -> None:
        self._stream.write(json.dumps({"done": done, "total": total}) + "\n")

    def log(self, name: str, value: float, step: int) -> None:
        line = {"name": name, "value": value, "step": step, "at": time.time()}
        self._stream.write(json.dumps(line) + "\n")


def _model(said: dict[str, Any], path: Path, spec: Preprocessing) -> TorchPredictor:
    from safetensors.torch import load_file

    importlib.import_module(said["module"])  # which registers a family of the user's own
    return predictor_of(DetectorConfig.model_validate(said["config"]), load_file(path), spec)


def _as_bytes(weights: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    content: bytes = save({name: value.clone().contiguous() for name, value in weights.items()})
    return content
