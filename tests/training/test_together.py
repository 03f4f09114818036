"""Several processes: by torchrun, and by Ray Train."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from dataclasses import replace
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

TWO = replace(TINY, steps=6, processes=2, keep_minutes=1e-9)


def job(workspace: Workspace, config: Any = TWO, **more: Any) -> TrainingJob:
    return TrainingJob(workspace, scenes(workspace), config, CLASSES, SPEC, **more)


def equal(one: TrainingResult, other: TrainingResult) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_a_job_is_read_as_it_was_written(workspace: Workspace, tmp_path: Path) -> None:
    folder = suppliers.make("detr", tmp_path / "supplied")
    model = huggingface.load_pretrained(folder, CLASSES, SPEC)
    made = job(
        workspace, replace(TWO, processes=1), model=model, fresh={"a" * 64}, disputed=["b" * 64]
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


def test_what_several_processes_cannot_do_is_said(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="cannot stop early"):
        watched = replace(TWO, stopping=EarlyStopping(every=2, patience=1))
        distributed.train_distributed(job(workspace, watched), tmp_path / "job")
    with pytest.raises(ParameterError, match="processes is 2, but 1"):
        train(workspace, scenes(workspace), TWO, classes=CLASSES, preprocessing=SPEC)


@pytest.mark.slow
def test_two_processes_repeat_resume_and_learn_as_one(workspace: Workspace, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    logged: list[str] = []
    first = distributed.train_distributed(
        job(workspace),
        tmp_path / "one",
        progress=lambda done, total: told.append((done, total)),
        log=lambda name, value, step: logged.append(name),
    )
    second = distributed.train_distributed(job(workspace), tmp_path / "two")
    assert equal(first, second)
    assert first.conditions["processes"] == 2
    assert told[-1] == (6, 6)
    assert "train/loss" in logged
    alone = train(
        workspace, scenes(workspace), replace(TWO, processes=1), classes=CLASSES, preprocessing=SPEC
    )
    assert first.curves["loss"][0] == pytest.approx(alone.curves["loss"][0], rel=0.5)
    # Taken up from an older state: the last step again, to the same bits.
    newest = max((tmp_path / "two/state").iterdir())
    newest.unlink()
    resumed = distributed.train_distributed(job(workspace), tmp_path / "two")
    assert resumed.resumed_at == 5
    assert equal(first, resumed)


@pytest.mark.slow
def test_a_failing_process_is_told_and_killed_ones_leave_nothing(
    workspace: Workspace, tmp_path: Path
) -> None:
    made = job(workspace, replace(TWO, memory_mib=1))
    media_path(workspace, made.dataset.frames[3]).write_bytes(b"rubbish")
    with pytest.raises(StepFailed, match="number 3"):
        distributed.train_distributed(made, tmp_path / "broken")

    script = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from tests.training.test_together import *\n"
        "from workbench.core.workspace import Workspace\n"
        "place = Workspace(Path(sys.argv[1]))\n"
        "together.train(job(place, replace(TWO, steps=100000)), Path(sys.argv[2]))\n"
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
def test_through_ray_train_the_weights_are_torchruns(workspace: Workspace, tmp_path: Path) -> None:
    by_ray = distributed.train_distributed(job(workspace), tmp_path / "ray", through="ray")
    by_torchrun = distributed.train_distributed(job(workspace), tmp_path / "torchrun")
    assert equal(by_ray, by_torchrun)
