"""Several processes: by torchrun, and by Ray Train."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.training import suppliers
from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core.errors import ParameterError, StepFailed
from workbench.core.workspace import Workspace
from workbench.detection import huggingface
from workbench.records.dataset import media_path
from workbench.training import EarlyStopping, TrainingResult, distributed, train
from workbench.training.distributed import TrainingJob, read_job

TWO = TINY.replace(steps=6, processes=2, keep_minutes=1e-9)


def job(workspace: Workspace, config: Any = TWO, **more: Any) -> TrainingJob:
    return TrainingJob(scenes(workspace), config, CLASSES, SPEC, **more)


def equal(one: TrainingResult, other: TrainingResult) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_a_job_is_read_as_it_was_written(workspace: Workspace, tmp_path: Path) -> None:
    folder = suppliers.make("detr", tmp_path / "supplied")
    model = huggingface.load_pretrained(folder, CLASSES, SPEC)
    made = job(
        workspace, TWO.replace(processes=1), model=model, fresh={"a" * 64}, disputed=["b" * 64]
    )
    (tmp_path / "job").mkdir()
    made.write(tmp_path / "job")
    found = read_job(tmp_path / "job")
    assert found.config == made.config
    assert found.dataset.frames == made.dataset.frames
    assert found.dataset.labels == made.dataset.labels
    assert found.model.supplier == model.supplier
    assert (found.fresh, found.disputed) == (["a" * 64], ["b" * 64])
    weights = found.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_early_stopping_and_a_wrong_number_of_processes_are_refused(
    workspace: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match="early stopping do not work"):
        watched = TWO.replace(stopping=EarlyStopping(every=2, patience=1))
        distributed.train_job(job(workspace, watched), tmp_path / "job")
    with pytest.raises(ParameterError, match="processes is 2, but the training runs in 1"):
        train(scenes(workspace), TWO, classes=CLASSES, preprocessing=SPEC)


@pytest.mark.slow
def test_two_processes_repeat_resume_and_learn_as_one(workspace: Workspace, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    logged: list[str] = []
    first = distributed.train_job(
        job(workspace),
        tmp_path / "one",
        progress=lambda done, total: calls.append((done, total)),
        log=lambda name, value, step: logged.append(name),
    )
    second = distributed.train_job(job(workspace), tmp_path / "two")
    assert equal(first, second)
    assert first.conditions["processes"] == 2
    assert calls[-1] == (6, 6)
    assert "train/loss" in logged
    alone = train(scenes(workspace), TWO.replace(processes=1), classes=CLASSES, preprocessing=SPEC)
    assert first.curves["loss"][0] == pytest.approx(alone.curves["loss"][0], rel=0.5)
    # Resumed from an older state, the last step gives the same bits.
    newest = max((tmp_path / "two/state").iterdir())
    newest.unlink()
    resumed = distributed.train_job(job(workspace), tmp_path / "two")
    assert resumed.resumed_at == 5
    assert equal(first, resumed)


@pytest.mark.slow
def test_a_failed_process_is_reported_and_no_process_survives_a_kill(
    workspace: Workspace, tmp_path: Path
) -> None:
    made = job(workspace, TWO.replace(memory_mib=1))
    media_path(workspace, made.dataset.frames[3]).write_bytes(b"rubbish")
    with pytest.raises(StepFailed, match="number 3"):
        distributed.train_job(made, tmp_path / "broken")

    script = (
        "import sys; from pathlib import Path\n"
        "from tests.training.test_distributed import *\n"
        "from workbench.core.workspace import Workspace\n"
        "endless = job(Workspace(Path(sys.argv[1])), TWO.replace(steps=100000))\n"
        "distributed.train_job(endless, Path(sys.argv[2]))\n"
    )
    here = str(Path(__file__).resolve().parents[2])
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "h"), str(tmp_path / "long")], cwd=here
    )
    state = tmp_path / "long/state"
    deadline = time.monotonic() + 90
    while not list(state.glob("*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    below = psutil.Process(run.pid).children(recursive=True)
    assert len(below) >= 3
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(below, timeout=20)
    assert not alive


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_train_gives_the_weights_of_torchrun(workspace: Workspace, tmp_path: Path) -> None:
    by_ray = distributed.train_job(job(workspace), tmp_path / "ray", through="ray")
    by_torchrun = distributed.train_job(job(workspace), tmp_path / "torchrun")
    assert equal(by_ray, by_torchrun)
