"""Steps as Ray tasks: same results, rejected workers, killed workers, cancelled steps."""

from __future__ import annotations

import copy
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.pipeline.conftest import CONTRACT, write_notebook
from workbench.core.errors import ContractError, ServiceError
from workbench.core.workspace import Workspace
from workbench.pipeline.executors import ray_executor
from workbench.pipeline.executors.local import run_once
from workbench.pipeline.executors.ray_executor import RayExecutor, check_workers
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.records.store import Store

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def ray_home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("ray") / ".workbench")


@pytest.fixture(scope="module")
def ray_here(ray_home: Workspace) -> Iterator[RayExecutor]:
    """One Ray for all tests of this file: it takes 20 s to start."""
    executor = RayExecutor(workspace=ray_home)
    executor._connected()
    yield executor
    executor.close()


def spec_of(project: Path, workspace: Workspace, work: str, step: str = "a") -> StepSpec:
    notebook = write_notebook(project / f"notebooks/steps/{step}.ipynb", work)
    return StepSpec(
        step=step,
        notebook=str(notebook),
        home=str(workspace.root),
        folder=str(workspace.runs / "one" / step),
        cache=str(workspace.scratch / step),
        parameters={"n": 3},
        inputs={},
        declared_inputs=CONTRACT["inputs"],
        declared_outputs=CONTRACT["outputs"],
        threads=1,
        timeout_s=60,
        memory_gib=1,
        environment={},
    )


def execute(executor: RayExecutor, spec: StepSpec) -> StepResult:
    return executor.execute(spec, lambda: None, threading.Event())


def in_background(
    executor: RayExecutor, spec: StepSpec, stop: threading.Event
) -> tuple[threading.Thread, list[StepResult]]:
    results: list[StepResult] = []
    thread = threading.Thread(
        target=lambda: results.append(executor.execute(spec, lambda: None, stop))
    )
    thread.start()
    return thread, results


def wait_for(path: Path) -> int:
    """The process id that a notebook wrote into ``path``."""
    deadline = time.monotonic() + 200  # Ray may have to be started first, on a busy machine
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path.name} was never written")


def gone(pid: int, within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not psutil.pid_exists(pid)


SLOW_ONCE = """
import os, pathlib, time
mark = pathlib.Path({mark!r})
if not mark.exists():
    mark.write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_step_has_the_same_result_as_in_a_local_process(
    ray_here: RayExecutor, project: Path, workspace: Workspace, tmp_path: Path
) -> None:
    work = "step.metric('loss', 0.5)\nstep.progress(1, 1)"
    elsewhere = Workspace(tmp_path / "elsewhere")
    calls: list[float] = []
    watched = ray_here.execute(
        spec_of(project, workspace, work), lambda: calls.append(time.monotonic()), threading.Event()
    )
    plain = run_once(spec_of(project, elsewhere, work))
    assert watched.status is ExitStatus.OK, watched.failure
    assert watched.outputs == plain.outputs
    assert calls
    there, here = Store(workspace), Store(elsewhere)
    for ref in plain.outputs.values():
        record = "record.json"
        assert (there.folder(ref) / record).read_bytes() == (here.folder(ref) / record).read_bytes()


@pytest.mark.slow
def test_a_failing_notebook_names_its_cell(
    ray_here: RayExecutor, project: Path, workspace: Workspace
) -> None:
    failed = execute(ray_here, spec_of(project, workspace, "raise KeyError('gone')"))
    assert failed.status is ExitStatus.USER_ERROR
    assert failed.failure is not None
    assert failed.failure.cell == 4  # as the prompt says: the injected parameters are a cell too


@pytest.mark.slow
def test_a_killed_worker_crashes_the_step_and_a_retry_succeeds(
    ray_here: RayExecutor, project: Path, workspace: Workspace
) -> None:
    mark = project / "mark"
    spec = spec_of(project, workspace, SLOW_ONCE.format(mark=str(mark)))
    thread, results = in_background(ray_here, spec, threading.Event())
    kernel = wait_for(mark)
    worker = next(
        above for above in psutil.Process(kernel).parents() if above.name().startswith("ray::")
    )
    os.kill(worker.pid, signal.SIGKILL)
    thread.join(60)
    assert [result.status for result in results] == [ExitStatus.CRASHED]
    assert "worker was lost" in str(results[0].failure)
    assert gone(kernel)
    assert list(Store(workspace).refs("selection")) == []
    assert execute(ray_here, spec).status is ExitStatus.OK


@pytest.mark.slow
def test_a_cancelled_step_ends_with_all_its_processes(
    ray_here: RayExecutor, project: Path, workspace: Workspace
) -> None:
    mark, stop = project / "mark", threading.Event()
    spec = spec_of(project, workspace, SLOW_ONCE.format(mark=str(mark)))
    thread, results = in_background(ray_here, spec, stop)
    kernel = wait_for(mark)
    stop.set()
    thread.join(60)
    assert [result.status for result in results] == [ExitStatus.CANCELLED]
    assert gone(kernel)


@pytest.mark.slow
def test_two_steps_run_concurrently_on_two_cores(
    ray_here: RayExecutor, project: Path, workspace: Workspace
) -> None:
    if ray_here.threads < 2:
        pytest.skip("one core")
    meet = (
        "import pathlib, time\nmine, other = pathlib.Path({mine!r}), pathlib.Path({other!r})\n"
        "mine.touch()\ndeadline = time.time() + 45\n"
        "while not other.exists():\n    assert time.time() < deadline\n    time.sleep(0.05)"
    )
    one, two = str(project / "one"), str(project / "two")
    first = spec_of(project, workspace, meet.format(mine=one, other=two), "a")
    second = spec_of(project, workspace, meet.format(mine=two, other=one), "b")
    thread, results = in_background(ray_here, first, threading.Event())
    results.append(execute(ray_here, second))
    thread.join(60)
    assert [result.status for result in results] == [ExitStatus.OK, ExitStatus.OK]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_local_ray_listens_on_loopback_only() -> None:
    import ray

    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
    family = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    heard = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in family
    }
    assert heard
    assert all(ip.removeprefix("::ffff:").startswith("127.") for ip in heard), heard
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])  # of whoever imported ray first
    assert token.stat().st_mode & 0o777 == 0o600


def test_differences_of_a_worker_are_named() -> None:
    ours = ray_executor.worker_environment()
    theirs = copy.deepcopy(ours)
    assert ray_executor.environment_differences(ours, theirs) == []
    theirs["code"] = "0" * 64
    theirs["environment"]["python"] = "3.11.0"
    theirs["environment"]["distributions"].append("extra==1#0")
    theirs["environment"]["machine"]["accelerator"] = "H100"
    text = " · ".join(ray_executor.environment_differences(ours, theirs))
    for part in ("Python 3.11.0", "also has extra==1", "accelerator H100", "own code"):
        assert part in text


@pytest.mark.slow
def test_a_worker_that_differs_is_rejected_before_anything_runs(
    ray_here: RayExecutor, project: Path, workspace: Workspace
) -> None:
    import ray

    ours = copy.deepcopy(ray_executor.worker_environment())
    ours["environment"]["distributions"].append("numpy==0#0")
    with pytest.raises(ContractError, match="lacks numpy==0"):
        check_workers(ray_here._connected(), ours)
    spec = spec_of(project, workspace, "pass")
    joined_later = ray.remote(ray_executor.run_shared).remote(spec.model_dump_json(), ours)
    late = StepResult.model_validate_json(ray.get(joined_later))
    assert late.status is ExitStatus.CONTRACT
    assert "lacks numpy==0" in str(late.failure)
    assert not Path(spec.folder).exists()


@pytest.mark.slow  # Ray tries for a minute and more
def test_an_unreachable_cluster_is_reported(workspace: Workspace) -> None:
    executor = RayExecutor("127.0.0.1:9", workspace)
    with pytest.raises(ServiceError, match="cannot connect to Ray"):
        executor._connected()
