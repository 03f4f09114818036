"""One training on several processes: torch's DDP, started by torchrun or by Ray Train.

Each process takes its part of every step and they average their gradients, so a step is as large
as ever. The weights repeat to the bit for the same number of processes and threads, and are others
than those of one process alone: batch norm and the loss see smaller parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import IO, Literal

from workbench import workspace
from workbench.errors import ParameterError, StepFailed
from workbench.processes import die_with_parent
from workbench.services import ray_cluster
from workbench.training import job as jobs
from workbench.training.job import Job
from workbench.training.progress import Log
from workbench.training.trained import Trained
from workbench.training.work import Told

_LOG = "processes.log"
_AGENT, _MEMBER = "agent", "member"
_POLL_S = 0.2
_LAST_WORDS = 2000
_SILENCE = timedelta(minutes=10)


def train(
    job: Job,
    folder: Path,
    *,
    through: Literal["torchrun", "ray"] = "torchrun",
    progress: Told | None = None,
    log: Log | None = None,
) -> Trained:
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
    (folder / jobs.RESULT).unlink(missing_ok=True)
    (folder / jobs.TOLD).write_bytes(b"")
    job.write(folder)
    begin = _by_torchrun if through == "torchrun" else _by_ray
    begin(folder, job.config.processes, _Listener(folder / jobs.TOLD, progress, log))
    return jobs.read_result(folder, job)


def start_torchrun(folder: Path, backend: str, processes: int) -> None:
    """Torchrun's own agent on this machine; a rendezvous on loopback, no port to choose."""
    from torch.distributed import run

    run.main(
        [
            "--standalone",
            f"--nproc-per-node={processes}",
            "--module",
            "workbench.training.together",
            _MEMBER,
            str(folder),
            backend,
        ]
    )


def take_part(folder: Path, backend: str) -> None:
    """What each process of torchrun does: join the others, train, leave."""
    import torch.distributed as together

    together.init_process_group(backend, timeout=_SILENCE)
    try:
        jobs.carry_out(folder)
    finally:
        together.destroy_process_group()


def _by_torchrun(folder: Path, processes: int, listener: _Listener) -> None:
    backend = "nccl" if _wants_cuda(folder) else "gloo"
    command = [sys.executable, "-m", "workbench.training.together", _AGENT]
    command += [str(folder), backend, str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if backend == "gloo":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with (folder / _LOG).open("wb") as said:
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
            f"a training process failed:\n{_last_words(folder / _LOG)}",
            where=folder.name,
            hint="The same training started again goes on from its last state",
        )


def _by_ray(folder: Path, processes: int, listener: _Listener) -> None:
    with ray_cluster.connected(workspace.find()):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        try:
            gpu = _wants_cuda(folder)
            TorchTrainer(
                ray_worker,
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


def ray_worker(settings: dict[str, str]) -> None:
    """What each of Ray's workers does; Ray has made them a group already."""
    jobs.carry_out(Path(settings["folder"]))


class _Listener:
    """Passes on what the first process tells."""

    def __init__(self, path: Path, progress: Told | None, log: Log | None) -> None:
        self._path, self._progress, self._log = path, progress, log
        self._at = 0

    def hear(self) -> None:
        with self._path.open("rb") as stream:
            stream.seek(self._at)
            for line in _whole_lines(stream):
                self._at += len(line)
                said = json.loads(line)
                if "done" in said and self._progress:
                    self._progress(said["done"], said["total"])
                elif "name" in said and self._log:
                    self._log(said["name"], said["value"], said["step"])


def _whole_lines(stream: IO[bytes]) -> list[bytes]:
    return [line for line in stream if line.endswith(b"\n")]


def _wants_cuda(folder: Path) -> bool:
    return bool(json.loads((folder / jobs.JOB).read_text())["config"]["device"] == "cuda")


def _last_words(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "Error" in line or "StepFailed" in line]
    return "\n".join((errors or lines)[-5:])[-_LAST_WORDS:]


if __name__ == "__main__":
    # Torchrun's agent dies with us and its processes with it, however we are killed.
    die_with_parent()
    part, where, how, *count = sys.argv[1:]
    if part == _AGENT:
        start_torchrun(Path(where), how, int(count[0]))
    else:
        take_part(Path(where), how)
