"""What a step uses of the machine's memory, and whether the system killed for lack of it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import resource
import signal
import time
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

import psutil

from workbench.core import workspace
from workbench.core.processes import die_with_parent
from workbench.core.workspace import Workspace
from workbench.pipeline import secret_scan
from workbench.pipeline.spec import ExitStatus, Failure, StepResult, StepSpec

_MIB = 2**20
_OOM_EVENTS = Path("/sys/fs/cgroup/memory.events")
_OOM_EVENTS_V1 = Path("/sys/fs/cgroup/memory/memory.oom_control")


def resident_mib(pid: int | None) -> float:
    """Resident memory of a process and all below it; pages they share count in each."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total / _MIB


def oom_kills(*files: Path) -> int:
    """Processes that the system has killed in this control group because memory ran out.

    Always 0 where the system does not say; a difference of two calls is what tells something.
    """
    for path in files or (_OOM_EVENTS, _OOM_EVENTS_V1):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


# ---- One unit of execution: ``workbench run-step SPEC.json`` → ``result.json`` beside it.
#
# The notebook runs in a forked child, so this process can watch its time and memory and end all of
# it: the child dies with this process, the kernel dies with the child.


SPEC_FILE = "spec.json"
RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
_POLL_S = 0.25


def write_spec(spec: StepSpec) -> Path:
    """Write the spec into the step's folder, from which an older result goes; returns its file."""
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    path = folder / SPEC_FILE
    path.write_text(spec.model_dump_json(indent=1))
    return path


def run_step(spec_file: Path) -> StepResult:
    """Run the step of ``spec_file`` and write its result; expected failures never raise."""
    spec = StepSpec.model_validate_json(spec_file.read_bytes())
    folder = Path(spec.folder)
    for left in ("failure.json", "outputs.json", "progress.json", RESULT_FILE):
        (folder / left).unlink(missing_ok=True)
    Path(spec.cache).mkdir(parents=True, exist_ok=True)
    started, used = time.monotonic(), _cpu_seconds()
    status, failure, peak = _run_watched(spec, spec_file)
    outputs = _read_outputs(folder)
    if status is ExitStatus.OK:
        status, failure = _check_outputs(spec, outputs)
    told = secret_scan.redact_folder(
        folder, secret_scan.known_secrets(Workspace(Path(spec.home)), spec.secrets)
    )
    if told:
        status, failure = ExitStatus.CONTRACT, secrets_leaked(told)
    result = StepResult(
        status=status,
        seconds=round(time.monotonic() - started, 3),
        peak_memory_mib=round(peak, 1),
        cpu_seconds=round(_cpu_seconds() - used, 3),
        outputs=outputs if status is ExitStatus.OK else {},
        failure=failure,
    )
    workspace.write_atomic(folder / RESULT_FILE, result.model_dump_json(indent=1).encode())
    return result


def _run_watched(spec: StepSpec, spec_file: Path) -> tuple[ExitStatus, Failure | None, float]:
    """Run the notebook in a child; returns how it ended and the peak memory of its tree in MiB."""
    fork = multiprocessing.get_context("fork")  # nothing heavy is imported yet, no thread runs
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_run_child, args=(spec, spec_file, sender))
    child.start()
    sender.close()
    signal.signal(signal.SIGTERM, _on_sigterm)
    deadline = time.monotonic() + spec.timeout_s
    killed_before = oom_kills()
    peak, crashed = 0.0, f"the process that ran {Path(spec.notebook).name} was killed"
    try:
        while True:
            ready = wait([receiver, child.sentinel], _POLL_S)
            if receiver in ready:
                with contextlib.suppress(EOFError):
                    status, failure = receiver.recv()
                    if status is ExitStatus.KERNEL_DIED:
                        failure = _kernel_died_failure(failure, peak, oom_kills() - killed_before)
                    return status, failure, peak
            if ready:
                return ExitStatus.CRASHED, _failure("crashed", crashed), peak
            peak = max(peak, resident_mib(child.pid))
            if time.monotonic() > deadline:
                return ExitStatus.TIMED_OUT, _timeout_failure(spec), peak
            if peak > spec.memory_gib * 1024:
                return ExitStatus.KERNEL_DIED, _out_of_memory_failure(spec, peak), peak
    except KeyboardInterrupt:
        return ExitStatus.CANCELLED, _failure("cancelled", "cancelled"), peak
    finally:
        _kill_tree(child)


def _cpu_seconds() -> float:
    """Processor time of ended children and theirs, as far as each was waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def secrets_leaked(told: dict[str, list[str]]) -> Failure:
    """The failure of a step whose files held secrets, see `leaks.take_out`."""
    file, names = next(iter(told.items()))
    message = f"the value of secret {', '.join(names)} stood in {file}; it was taken out"
    return _failure("contract", message, "Do not print a secret, nor what contains it")


def _timeout_failure(spec: StepSpec) -> Failure:
    hint = "Raise timeout_s of the step in the pipeline file, or give it less work"
    return _failure("timed-out", f"not done after {spec.timeout_s:g} s", hint)


def _kernel_died_failure(failure: Failure, peak: float, oom_kills: int) -> Failure:
    """What killed a kernel, as far as the machine says."""
    used = f"its peak was {peak:.0f} MiB"
    if oom_kills > 0:
        message = f"the system killed the kernel because memory ran out; {used}"
        return _failure("out-of-memory", message, "Use less memory, or a machine that has more")
    return failure.model_copy(update={"message": f"{failure.message}; {used}"})


def _out_of_memory_failure(spec: StepSpec, peak: float) -> Failure:
    hint = "Raise resources.memory_gib in the notebook's contract, or use less"
    message = f"used {peak:.0f} MiB, more than its {spec.memory_gib:g} GiB"
    return _failure("out-of-memory", message, hint)


def _run_child(spec: StepSpec, spec_file: Path, sender: object) -> None:
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from workbench.pipeline import runner

    sender.send(runner.execute_notebook(spec, spec_file))  # type: ignore[attr-defined]


def _check_outputs(spec: StepSpec, outputs: dict[str, str]) -> tuple[ExitStatus, Failure | None]:
    missing = sorted(set(spec.declared_outputs) - set(outputs))
    if not missing:
        return ExitStatus.OK, None
    hint = "Call step.output(name, ref) for each output that the contract declares"
    message = f"the notebook ended without its output {', '.join(missing)}"
    return ExitStatus.CONTRACT, _failure("contract", message, hint)


def _read_outputs(folder: Path) -> dict[str, str]:
    path = folder / "outputs.json"
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def _kill_tree(child: multiprocessing.process.BaseProcess) -> None:
    """End the child and everything below it; kernels start sessions of their own."""
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(child.pid).children(recursive=True)
    if child.is_alive():
        child.kill()
    child.join()
    for process in below:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _failure(kind: str, message: str, hint: str | None = None) -> Failure:
    return Failure(kind=kind, message=message, hint=hint)
