"""Training on several processes with DDP, started by torchrun or Ray Train."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

from torch import Tensor

from workbench.core import workspace
from workbench.core.errors import ParameterError, StepFailed
from workbench.core.processes import die_with_parent
from workbench.core.workspace import Workspace, write_atomic
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
from workbench.training.trainer import ProgressCallback, train

_JOB_FILE, _RESULT_FILE, _PROGRESS_FILE, _STATE_DIR = (
    "job.json",
    "result.json",
    "told.jsonl",
    "state",
)
_WEIGHTS_FILE, _MODEL_FILE, _START_FILE = (
    "weights.safetensors",
    "model.safetensors",
    "start.safetensors",
)
_RESULT_FIELDS = (
    "curves",
    "frames",
    "seconds",
    "images_per_second",
    "resumed_at",
    "conditions",
    "facts",
)
_MEASURED_FIELDS = ("waited", "peak_mib")


@dataclass(frozen=True)
class TrainingJob:
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
            write_atomic(folder / f"{name}.jsonl", to_json_lines(getattr(self.dataset, name)))
        if self.model is not None:
            said["model"] = self._kept(folder / _MODEL_FILE, self.model)
            supplier: Supplier | None = getattr(self.model, "supplier", None)
            said["supplier"] = None if supplier is None else supplier.model_dump(mode="json")
        if self.start is not None:
            said["start"] = self._kept(folder / _START_FILE, self.start.detector)
        write_atomic(folder / _JOB_FILE, json.dumps(said).encode())

    def _kept(self, path: Path, model: Any) -> dict[str, Any]:
        write_atomic(path, _to_safetensors(model.state_dict()))
        build = families.find_family(model.config.architecture).build
        return {"config": model.config.model_dump(mode="json"), "module": build.__module__}


def read_job(folder: Path) -> TrainingJob:
    """The job as it was written, with models of its own."""
    said = json.loads((folder / _JOB_FILE).read_text())
    schema = LabelSchema.model_validate(said["schema"])
    dataset = Dataset(
        name=said["name"],
        label_schema=schema,
        drives=read_json_lines(folder / "drives.jsonl", Drive),
        frames=read_json_lines(folder / "frames.jsonl", Frame),
        labels=read_json_lines(folder / "labels.jsonl", Label),
        simulated=said["simulated"],
    )
    spec = Preprocessing.model_validate(said["preprocessing"])
    model: Any = None
    start: TorchPredictor | None = None
    if said["model"]:
        model = _load_model(said["model"], folder / _MODEL_FILE, spec).detector
        if said["supplier"]:
            model.supplier = Supplier.model_validate(said["supplier"])
    if said["start"]:
        start = _load_model(said["start"], folder / _START_FILE, spec)
    return TrainingJob(
        Workspace(Path(said["home"])), dataset, TrainingConfig.from_values(said["config"]),
        tuple(said["classes"]), spec, model, start, said["fresh"], said["disputed"],
    )  # fmt: skip


def run_job(folder: Path) -> None:
    """Train what the folder describes, as one of its processes; the first writes the result."""
    from workbench.training.trainer import rank_and_world_size

    job, first = read_job(folder), rank_and_world_size()[0] == 0
    teller = _ProgressWriter(folder / _PROGRESS_FILE) if first else None
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
        checkpoint_dir=folder / _STATE_DIR,
        progress=teller.progress if teller else None,
        log=teller.log if teller else None,
    )
    if first:
        _write_result(folder, trained)


def _write_result(folder: Path, trained: TrainingResult) -> None:
    write_atomic(folder / _WEIGHTS_FILE, _to_safetensors(trained.weights))
    said = {name: getattr(trained, name) for name in (*_RESULT_FIELDS, *_MEASURED_FIELDS)}
    said["detector"] = trained.detector.model_dump(mode="json")
    write_atomic(folder / _RESULT_FILE, json.dumps(said).encode())


def _read_result(folder: Path, job: TrainingJob) -> TrainingResult:
    """What the processes have trained together."""
    from safetensors.torch import load_file

    said = json.loads((folder / _RESULT_FILE).read_text())
    return TrainingResult(
        detector=DetectorConfig.model_validate(said.pop("detector")),
        preprocessing=job.preprocessing,
        config=job.config,
        weights=load_file(folder / _WEIGHTS_FILE),
        supplier=getattr(job.model, "supplier", None),
        **said,
    )


class _ProgressWriter:
    """Writes what `train` tells, a line each, for whoever started the processes."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", buffering=1)

    def progress(self, done: int, total: int) -> None:
        self._stream.write(json.dumps({"done": done, "total": total}) + "\n")

    def log(self, name: str, value: float, step: int) -> None:
        line = {"name": name, "value": value, "step": step, "at": time.time()}
        self._stream.write(json.dumps(line) + "\n")


def _load_model(said: dict[str, Any], path: Path, spec: Preprocessing) -> TorchPredictor:
    from safetensors.torch import load_file

    importlib.import_module(said["module"])  # which registers a family of the user's own
    return build_predictor(DetectorConfig.model_validate(said["config"]), load_file(path), spec)


def _to_safetensors(weights: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    content: bytes = save({name: value.clone().contiguous() for name, value in weights.items()})
    return content


# ---- One training on several processes: torch's DDP, started by torchrun or by Ray Train.
#
# Each process takes its part of every step and they average their gradients, so a step is as large
# as ever. The weights repeat to the bit for the same number of processes and threads, and are others
# than those of one process alone: batch norm and the loss see smaller parts.


_LOG_FILE = "processes.log"
_AGENT, _MEMBER = "agent", "member"
_POLL_S = 0.2
_ERROR_TAIL_CHARS = 2000
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def train_distributed(
    job: TrainingJob,
    folder: Path,
    *,
    through: Literal["torchrun", "ray"] = "torchrun",
    progress: ProgressCallback | None = None,
    log: LogMetric | None = None,
) -> TrainingResult:
    """Train on ``job.config.processes`` processes.

    Args:
        folder: Where job, state and result lie. A training that was killed goes on from here. For
            Ray on several machines it must be the same folder on all of them.
        through: ``torchrun`` on this machine, or ``ray``: the cluster that is connected to, or one
            on this machine.

    Raises:
        ParameterError: Early stopping was asked for: nobody can look from several processes.
        StepFailed: A process failed; the message holds its last words.
    """
    if job.config.stopping.every or job.config.stopping.patience:
        raise ParameterError(
            "several processes cannot stop early or watch what is forgotten",
            where="TrainingConfig.stopping",
            hint="Train with processes=1, or judge the finished model",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RESULT_FILE).unlink(missing_ok=True)
    (folder / _PROGRESS_FILE).write_bytes(b"")
    job.write(folder)
    begin = _run_torchrun if through == "torchrun" else _run_ray
    begin(folder, job.config.processes, _ProgressReader(folder / _PROGRESS_FILE, progress, log))
    return _read_result(folder, job)


def _start_torchrun(folder: Path, backend: str, processes: int) -> None:
    """Torchrun's own agent on this machine; a rendezvous on loopback, no port to choose."""
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
    """What each process of torchrun does: join the others, train, leave."""
    import torch.distributed as together

    together.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT)
    try:
        run_job(folder)
    finally:
        together.destroy_process_group()


def _run_torchrun(folder: Path, processes: int, listener: _ProgressReader) -> None:
    backend = "nccl" if _uses_cuda(folder) else "gloo"
    command = [sys.executable, "-m", "workbench.training.distributed", _AGENT]
    command += [str(folder), backend, str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if backend == "gloo":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with (folder / _LOG_FILE).open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                listener.hear()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
    listener.hear()
    if process.returncode:
        raise StepFailed(
            f"a training process failed:\n{_error_tail(folder / _LOG_FILE)}",
            where=folder.name,
            hint="The same training started again goes on from its last state",
        )


def _run_ray(folder: Path, processes: int, listener: _ProgressReader) -> None:
    with ray_cluster.connect(workspace.find_workspace()):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        try:
            gpu = _uses_cuda(folder)
            TorchTrainer(
                _ray_worker,
                train_loop_config={"folder": str(folder.resolve())},
                scaling_config=ScalingConfig(num_workers=processes, use_gpu=gpu),
                torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
                run_config=RunConfig(storage_path=str(folder.resolve() / "ray")),
            ).fit()
        except Exception as error:  # Ray's training errors share no base that it promises
            raise StepFailed(
                f"a training process failed on Ray: {ray_cluster.first_line(error)}",
                where=folder.name,
                hint="The same training started again goes on from its last state",
            ) from error
    listener.hear()


def _ray_worker(settings: dict[str, str]) -> None:
    """What each of Ray's workers does; Ray has made them a group already."""
    run_job(Path(settings["folder"]))


class _ProgressReader:
    """Passes on what the first process tells."""

    def __init__(
        self, path: Path, progress: ProgressCallback | None, log: LogMetric | None
    ) -> None:
        self._path, self._progress, self._log = path, progress, log
        self._at = 0

    def hear(self) -> None:
        with self._path.open("rb") as stream:
            stream.seek(self._at)
            for line in _complete_lines(stream):
                self._at += len(line)
                said = json.loads(line)
                if "done" in said and self._progress:
                    self._progress(said["done"], said["total"])
                elif "name" in said and self._log:
                    self._log(said["name"], said["value"], said["step"])


def _complete_lines(stream: IO[bytes]) -> list[bytes]:
    return [line for line in stream if line.endswith(b"\n")]


def _uses_cuda(folder: Path) -> bool:
    return bool(json.loads((folder / _JOB_FILE).read_text())["config"]["device"] == "cuda")


def _error_tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "Error" in line or "StepFailed" in line]
    return "\n".join((errors or lines)[-5:])[-_ERROR_TAIL_CHARS:]


if __name__ == "__main__":
    # Torchrun's agent dies with us and its processes with it, however we are killed.
    die_with_parent()
    part, where, how, *count = sys.argv[1:]
    if part == _AGENT:
        _start_torchrun(Path(where), how, int(count[0]))
    else:
        _run_member(Path(where), how)
