"""One unit of execution: ``workbench run-step SPEC.json`` → ``result.json`` beside it.

The notebook runs in a forked child, so this process can watch its time and memory and end all of
it: the child dies with this process, the kernel dies with the child.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import time
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

import psutil

from workbench import workspace
from workbench.pipeline.spec import ExitStatus, Failure, StepResult, StepSpec
from workbench.processes import die_with_parent

SPEC = "spec.json"
RESULT = "result.json"
LOG = "log.txt"
_POLL_S = 0.25
_MIB = 2**20


def run_step(spec_file: Path) -> StepResult:
    """Run the step of ``spec_file`` and write its result; expected failures never raise."""
    spec = StepSpec.model_validate_json(spec_file.read_bytes())
    folder = Path(spec.folder)
    for left in ("failure.json", "outputs.json", "progress.json", RESULT):
        (folder / left).unlink(missing_ok=True)
    Path(spec.cache).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    status, failure, peak = _watched(spec, spec_file)
    outputs = _outputs(folder)
    if status is ExitStatus.OK:
        status, failure = _check_outputs(spec, outputs)
    result = StepResult(
        status=status,
        seconds=round(time.monotonic() - started, 3),
        peak_memory_mib=round(peak, 1),
        outputs=outputs if status is ExitStatus.OK else {},
        failure=failure,
    )
    workspace.write_atomic(folder / RESULT, result.model_dump_json(indent=1).encode())
    return result


def _watched(spec: StepSpec, spec_file: Path) -> tuple[ExitStatus, Failure | None, float]:
    """Run the notebook in a child; returns how it ended and the peak memory of its tree in MiB."""
    fork = multiprocessing.get_context("fork")  # nothing heavy is imported yet, no thread runs
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_execute, args=(spec, spec_file, sender))
    child.start()
    sender.close()
    signal.signal(signal.SIGTERM, _cancelled)
    deadline = time.monotonic() + spec.timeout_s
    peak, crashed = 0.0, f"the process that ran {Path(spec.notebook).name} was killed"
    try:
        while True:
            ready = wait([receiver, child.sentinel], _POLL_S)
            if receiver in ready:
                with contextlib.suppress(EOFError):
                    status, failure = receiver.recv()
                    return status, failure, peak
            if ready:
                return ExitStatus.CRASHED, _failure("crashed", crashed), peak
            peak = max(peak, _memory_mib(child.pid))
            if time.monotonic() > deadline:
                return ExitStatus.TIMED_OUT, _timed_out(spec), peak
            if peak > spec.memory_gib * 1024:
                return ExitStatus.KERNEL_DIED, _out_of_memory(spec, peak), peak
    except KeyboardInterrupt:
        return ExitStatus.CANCELLED, _failure("cancelled", "cancelled"), peak
    finally:
        _end(child)


def _timed_out(spec: StepSpec) -> Failure:
    hint = "Raise timeout_s of the step in the pipeline file, or give it less work"
    return _failure("timed-out", f"not done after {spec.timeout_s:g} s", hint)


def _out_of_memory(spec: StepSpec, peak: float) -> Failure:
    hint = "Raise resources.memory_gib in the notebook's contract, or use less"
    message = f"used {peak:.0f} MiB, more than its {spec.memory_gib:g} GiB"
    return _failure("out-of-memory", message, hint)


def _execute(spec: StepSpec, spec_file: Path, sender: object) -> None:
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from workbench.pipeline import runner

    sender.send(runner.execute(spec, spec_file))  # type: ignore[attr-defined]


def _check_outputs(spec: StepSpec, outputs: dict[str, str]) -> tuple[ExitStatus, Failure | None]:
    missing = sorted(set(spec.declared_outputs) - set(outputs))
    if not missing:
        return ExitStatus.OK, None
    hint = "Call step.output(name, ref) for each output that the contract declares"
    message = f"the notebook ended without its output {', '.join(missing)}"
    return ExitStatus.CONTRACT, _failure("contract", message, hint)


def _outputs(folder: Path) -> dict[str, str]:
    path = folder / "outputs.json"
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def _memory_mib(pid: int | None) -> float:
    """Resident memory of a process and all below it; pages they share count in each."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total / _MIB


def _end(child: multiprocessing.process.BaseProcess) -> None:
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


def _cancelled(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _failure(kind: str, message: str, hint: str | None = None) -> Failure:
    return Failure(kind=kind, message=message, hint=hint)
