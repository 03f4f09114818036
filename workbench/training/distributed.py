"""Training on several processes with DDP, started by torchrun or Ray Train.

Each process loads its part of every step and they average their gradients, so the batch size is
unchanged. Weights are reproducible to the bit for an equal number of processes and threads, and
differ from those of one process: batch norm and the loss see smaller parts.

A training is handed over as a folder. ``job.json`` holds everything small; frames and labels are
JSON lines beside it, initial weights are safetensors. The first process writes
``weights.safetensors`` and then ``result.json``, which marks the result as complete.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from workbench.core.errors import ParameterError, StepFailed
from workbench.core.processes import die_with_parent
from workbench.core.text import short_repr
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace, find_workspace, write_atomic
from workbench.detection import families
from workbench.detection.config import DetectorConfig
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.records.base import Digest
from workbench.records.dataset import Dataset, read_json_lines, to_json_lines
from workbench.records.frames import Drive, Frame, Label, LabelSchema
from workbench.records.model_types import Supplier
from workbench.services import ray_cluster
from workbench.training.checkpoint import LogMetric, TrainingResult, build_predictor
from workbench.training.config import TrainingConfig
from workbench.training.early_stopping import Validation
from workbench.training.trainer import rank_and_world_size, train

__all__ = ["TrainingJob", "train_job"]

_JOB_FILE, _RESULT_FILE, _PROGRESS_FILE = "job.json", "result.json", "told.jsonl"
_WEIGHTS_FILE, _MODEL_FILE = "weights.safetensors", "model.safetensors"
_START_FILE, _STATE_DIR, _LOG_FILE = "start.safetensors", "state", "processes.log"
_RESULT_FIELDS = (
    "curves", "frames", "seconds", "images_per_second", "resumed_at", "conditions", "facts",
    "waited", "peak_mib",
)  # fmt: skip
_AGENT, _MEMBER = "agent", "member"
_POLL_S = 0.2
_ERROR_TAIL_CHARS = 2000
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@short_repr
@dataclass(frozen=True)
class TrainingJob:
    """What to train; the fields are the arguments of `train`."""

    dataset: Dataset
    config: TrainingConfig
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    model: Any = None
    start: TorchPredictor | None = None
    fresh: Collection[Digest] | None = None
    disputed: Collection[Digest] = ()

    def write(self, folder: Path) -> None:
        """Write the job into a folder that every process can read."""
        supplier: Supplier | None = getattr(self.model, "supplier", None)
        job: Json = {
            "home": str(self.dataset.workspace and self.dataset.workspace.root),
            "name": self.dataset.name,
            "schema": self.dataset.label_schema.model_dump(mode="json"),
            "simulated": self.dataset.simulated,
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "fresh": None if self.fresh is None else sorted(self.fresh),
            "disputed": sorted(self.disputed),
            "model": _write_model(folder / _MODEL_FILE, self.model),
            "start": _write_model(folder / _START_FILE, self.start and self.start.detector),
            "supplier": None if supplier is None else supplier.model_dump(mode="json"),
        }
        for name in ("drives", "frames", "labels"):
            write_atomic(folder / f"{name}.jsonl", to_json_lines(getattr(self.dataset, name)))
        write_atomic(folder / _JOB_FILE, json.dumps(job).encode())


def train_job(
    job: TrainingJob,
    folder: Path,
    *,
    validation: Validation | None = None,
    through: Literal["torchrun", "ray"] = "torchrun",
    progress: Progress | None = None,
    log: LogMetric | None = None,
) -> TrainingResult:
    """Train on ``job.config.processes`` processes; one is this process.

    Args:
        job: What to train.
        folder: Folder of job, state and result; a killed training resumes from it. For Ray on
            several machines it must be the same folder on all of them.
        validation: How the model is validated on the way, with one process only.
        through: How several processes are started: ``torchrun`` on this machine, or ``ray`` on the
            connected cluster or one on this machine.
        progress: Called with the steps done and their total.
        log: Called with the name of a curve, its value and the step.

    Raises:
        ParameterError: Early stopping is on, which several processes do not support.
        StepFailed: A process failed; the message ends with its last lines.
    """
    if job.config.processes == 1:
        return _train(job, validation=validation, checkpoint_dir=folder, progress=progress, log=log)
    if validation or job.config.stopping.every:
        raise ParameterError(
            "validation and early stopping do not work with several processes",
            where="TrainingConfig.stopping",
            hint="Train with processes=1, or evaluate the finished model",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RESULT_FILE).unlink(missing_ok=True)
    (folder / _PROGRESS_FILE).write_bytes(b"")
    job.write(folder)
    reader = _ProgressReader(folder / _PROGRESS_FILE, progress, log)
    if through == "torchrun":
        _run_torchrun(folder, job.config, reader)
    else:
        _run_ray(folder, job.config, reader)
    return _read_result(folder, job)


def _run_torchrun(folder: Path, config: TrainingConfig, reader: _ProgressReader) -> None:
    backend = "nccl" if config.device == "cuda" else "gloo"
    command = [sys.executable, "-m", "workbench.training.distributed", _AGENT]
    command += [str(folder), backend, str(config.processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if backend == "gloo":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with (folder / _LOG_FILE).open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                reader.read()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
    reader.read()
    if process.returncode:
        raise StepFailed(
            f"a training process failed:\n{_error_tail(folder / _LOG_FILE)}",
            where=folder.name,
            hint="Start the same training again: it resumes from its saved state",
        )


def _run_ray(folder: Path, config: TrainingConfig, reader: _ProgressReader) -> None:
    with ray_cluster.connect(find_workspace()):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        try:
            gpu = config.device == "cuda"
            TorchTrainer(
                _ray_worker,
                train_loop_config={"folder": str(folder.resolve())},
                scaling_config=ScalingConfig(num_workers=config.processes, use_gpu=gpu),
                torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
                run_config=RunConfig(storage_path=str(folder.resolve() / "ray")),
            ).fit()
        except Exception as error:  # Ray's training errors share no documented base class
            raise StepFailed(
                f"a training process failed on Ray: {ray_cluster.first_line(error)}",
                where=folder.name,
                hint="Start the same training again: it resumes from its saved state",
            ) from error
    reader.read()


def _ray_worker(settings: dict[str, str]) -> None:
    """Runs on each Ray worker; Ray has initialized the process group."""
    run_job(Path(settings["folder"]))


def run_job(folder: Path) -> None:
    """Train the job of a folder as one of its processes; the first one writes the result."""
    job, first = read_job(folder), rank_and_world_size()[0] == 0
    writer = _ProgressWriter(folder / _PROGRESS_FILE) if first else None
    result = _train(
        job,
        checkpoint_dir=folder / _STATE_DIR,
        progress=writer.progress if writer else None,
        log=writer.log if writer else None,
    )
    if first:
        write_atomic(folder / _WEIGHTS_FILE, _safetensors_bytes(result.weights))
        values: Json = {name: getattr(result, name) for name in _RESULT_FIELDS}
        values["detector"] = result.detector.model_dump(mode="json")
        write_atomic(folder / _RESULT_FILE, json.dumps(values).encode())


def _train(job: TrainingJob, **callbacks: Any) -> TrainingResult:
    return train(**vars(job), **callbacks)


def read_job(folder: Path) -> TrainingJob:
    """The job that `TrainingJob.write` wrote, with models of its own."""
    job = json.loads((folder / _JOB_FILE).read_text())
    dataset = Dataset(
        name=job["name"],
        label_schema=LabelSchema.model_validate(job["schema"]),
        drives=read_json_lines(folder / "drives.jsonl", Drive),
        frames=read_json_lines(folder / "frames.jsonl", Frame),
        labels=read_json_lines(folder / "labels.jsonl", Label),
        simulated=job["simulated"],
        workspace=Workspace(Path(job["home"])),
    )
    spec = Preprocessing.model_validate(job["preprocessing"])
    start = _read_model(job["start"], folder / _START_FILE, spec)
    supplied = _read_model(job["model"], folder / _MODEL_FILE, spec)
    model: Any = supplied and supplied.detector
    if job["supplier"]:
        model.supplier = Supplier.model_validate(job["supplier"])
    config = TrainingConfig(**job["config"])
    return TrainingJob(
        dataset, config, tuple(job["classes"]), spec, model, start, job["fresh"], job["disputed"]
    )


def _read_result(folder: Path, job: TrainingJob) -> TrainingResult:
    from safetensors.torch import load_file

    values = json.loads((folder / _RESULT_FILE).read_text())
    return TrainingResult(
        detector=DetectorConfig.model_validate(values.pop("detector")),
        preprocessing=job.preprocessing,
        config=job.config,
        weights=load_file(folder / _WEIGHTS_FILE),
        supplier=getattr(job.model, "supplier", None),
        **values,
    )


def _write_model(path: Path, model: Any) -> Json | None:
    if model is None:
        return None
    write_atomic(path, _safetensors_bytes(model.state_dict()))
    build = families.find_family(model.config.architecture).build
    return {"config": model.config.model_dump(mode="json"), "module": build.__module__}


def _read_model(info: Json | None, path: Path, spec: Preprocessing) -> TorchPredictor | None:
    from safetensors.torch import load_file

    if info is None:
        return None
    importlib.import_module(info["module"])  # registers a custom model family
    return build_predictor(DetectorConfig.model_validate(info["config"]), load_file(path), spec)


def _safetensors_bytes(weights: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    content: bytes = save({name: value.clone().contiguous() for name, value in weights.items()})
    return content


class _ProgressWriter:
    """Writes progress and curves of `train`, one JSON line each, for the starting process."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", buffering=1)

    def progress(self, done: int, total: int) -> None:
        self._stream.write(json.dumps({"done": done, "total": total}) + "\n")

    def log(self, name: str, value: float, step: int) -> None:
        line = {"name": name, "value": value, "step": step, "at": time.time()}
        self._stream.write(json.dumps(line) + "\n")


class _ProgressReader:
    """Passes on what `_ProgressWriter` wrote since the last call."""

    def __init__(self, path: Path, progress: Progress | None, log: LogMetric | None) -> None:
        self._path, self._progress, self._log = path, progress, log
        self._position = 0

    def read(self) -> None:
        with self._path.open("rb") as stream:
            stream.seek(self._position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                entry = json.loads(line)
                if "done" in entry and self._progress:
                    self._progress(entry["done"], entry["total"])
                elif "name" in entry and self._log:
                    self._log(entry["name"], entry["value"], entry["step"])


def _error_tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "Error" in line or "StepFailed" in line]
    return "\n".join((errors or lines)[-5:])[-_ERROR_TAIL_CHARS:]


def _start_torchrun(folder: Path, backend: str, processes: int) -> None:
    """Run torchrun's agent on this machine, with a rendezvous on loopback at any free port."""
    from torch.distributed import run

    run.main(
        [
            "--standalone",
            f"--nproc-per-node={processes}",
            "--module",
            "workbench.training.distributed",
            _MEMBER,
            str(folder),
            backend,
        ]
    )


def _run_member(folder: Path, backend: str) -> None:
    """What each of torchrun's processes does: join the process group and train."""
    import torch.distributed as dist

    dist.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT)
    try:
        run_job(folder)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    # Torchrun's agent dies with this process's parent, and its processes die with it.
    die_with_parent()
    role, job_folder, process_backend, *count = sys.argv[1:]
    if role == _AGENT:
        _start_torchrun(Path(job_folder), process_backend, int(count[0]))
    else:
        _run_member(Path(job_folder), process_backend)
