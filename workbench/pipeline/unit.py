"""The unit of execution: ``workbench run-step SPEC.json`` writes ``result.json`` beside the spec.

The notebook runs in a forked child, so that this process can watch its time and memory and end all
of it: the child dies with this process, the kernel dies with the child.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import resource
import signal
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType

import psutil
from pydantic import ValidationError

from workbench.core import secret_scan
from workbench.core.errors import ContractError, system_error
from workbench.core.processes import die_with_parent
from workbench.core.workspace import Workspace, project_root, write_atomic
from workbench.pipeline import redaction
from workbench.pipeline.spec import (
    OUTPUT_FILE,
    RESULT_FILE,
    ExitStatus,
    Failure,
    StepResult,
    StepSpec,
)

__all__ = ["run_step"]

_SPEC_FILE = "spec.json"
_MIB = 2**20
_POLL_S = 0.25
_OOM_EVENTS = (
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),  # version 1 of control groups
)


def write_spec(spec: StepSpec) -> Path:
    """Write the spec into the step's folder, remove an older result, and return the spec's file."""
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    path = folder / _SPEC_FILE
    path.write_text(spec.model_dump_json(indent=1))
    return path


def run_step(spec_file: Path) -> StepResult:
    """Run a step and write its result into its folder.

    Args:
        spec_file: A `StepSpec` as JSON.

    Returns:
        How the step ended. A failed step is a result, not an exception.
    """
    try:
        spec = StepSpec.model_validate_json(spec_file.read_bytes())
    except ValidationError as error:
        raise ContractError(
            "not a step's specification",
            where=spec_file,
            hint="`workbench run` writes it; run the pipeline with --from STEP to repeat a step",
        ) from error
    folder = Path(spec.folder)
    for name in ("failure.json", "outputs.json", "progress.json", RESULT_FILE):
        (folder / name).unlink(missing_ok=True)
    Path(spec.cache).mkdir(parents=True, exist_ok=True)
    started, cpu_before, started_ns = time.monotonic(), _cpu_seconds(), time.time_ns()
    known = _known_secrets(spec)
    peak_mib, failure = 0.0, _secret_in_source(spec, known)
    if failure is None:
        status, failure, peak_mib = _run_watched(spec, spec_file)
    else:
        status = ExitStatus.CONTRACT
    outputs = _read_outputs(folder)
    missing = sorted(set(spec.declared_outputs) - set(outputs))
    if status is ExitStatus.OK and missing:
        hint = "Call step.output(name, ref) for each output that the contract declares"
        message = f"the notebook did not write its output {', '.join(missing)}"
        status, failure = ExitStatus.CONTRACT, _failure("contract", message, hint)
    began_ns = min(started_ns, time.time_ns() - int((time.monotonic() - started) * 1e9))
    # If the clock was set back meanwhile, the second one is earlier, as the records' times are.
    leak = redact_files(spec, known) or _secret_in_records(spec, began_ns, known)
    if leak is not None:
        status, failure = ExitStatus.CONTRACT, leak
    result = StepResult(
        status=status,
        seconds=round(time.monotonic() - started, 3),
        peak_memory_mib=round(peak_mib, 1),
        cpu_seconds=round(_cpu_seconds() - cpu_before, 3),
        outputs=outputs if status is ExitStatus.OK else {},
        failure=failure,
    )
    write_atomic(folder / RESULT_FILE, result.model_dump_json(indent=1).encode())
    return result


def redact_files(spec: StepSpec, known: Mapping[str, str] | None = None) -> Failure | None:
    """Redact a step's files, see `redaction.redact_folder`.

    Args:
        spec: The step.
        known: Secret values by name; by default all that this machine knows.

    Returns:
        The failure of a step whose files contained known secrets.
    """
    folder = Path(spec.folder)
    found = redaction.redact_folder(folder, _known_secrets(spec) if known is None else known)
    if found.guessed:
        with (folder / OUTPUT_FILE).open("a", encoding="utf-8") as output:
            for file, names in found.guessed.items():
                output.write(f"--- redacted in {file}: {', '.join(names)}\n")
    hint = "Do not print or save a secret, nor an object that contains it"
    return _failure("contract", found.message(), hint) if found.known else None


def _known_secrets(spec: StepSpec) -> dict[str, str]:
    project = Path(spec.project) if spec.project else project_root(Path(spec.notebook))
    return redaction.known_secrets(Workspace(Path(spec.home)), spec.secrets, project)


def _secret_in_source(spec: StepSpec, known: Mapping[str, str]) -> Failure | None:
    """The failure of a notebook that contains a secret, which its record would keep."""
    try:
        text = Path(spec.notebook).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None  # running it will say so
    leaks = secret_scan.scan_known(text, known)
    if not leaks:
        return None
    message = f"the notebook contains the value of secret {leaks[0].name}"
    hint = "Remove it; read it with step.secret(…), declared under `secrets` in the contract"
    return _failure("contract", message, hint)


def _secret_in_records(spec: StepSpec, started_ns: int, known: Mapping[str, str]) -> Failure | None:
    """The failure of a step that wrote a secret into a record, whether or not it is an output."""
    leaks = redaction.leaks_in_records(Workspace(Path(spec.home)), started_ns, known)
    if not leaks:
        return None
    hint = "Delete that record's folder, and do not save a secret"
    return _failure("contract", leaks[0], hint)


def _run_watched(spec: StepSpec, spec_file: Path) -> tuple[ExitStatus, Failure | None, float]:
    """Run the notebook in a child; returns how it ended and the peak memory of its tree in MiB."""
    fork = multiprocessing.get_context("fork")  # nothing heavy is imported yet, no thread runs
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_run_child, args=(spec, spec_file, sender))
    child.start()
    sender.close()
    signal.signal(signal.SIGTERM, _on_sigterm)
    deadline = time.monotonic() + spec.timeout_s
    kills_before = _oom_kills()
    peak = 0.0
    try:
        while True:
            ready = wait([receiver, child.sentinel], _POLL_S)
            if receiver in ready:
                with contextlib.suppress(EOFError):
                    status, failure = receiver.recv()
                    if status is ExitStatus.KERNEL_DIED:
                        failure = _kernel_died(failure, peak, _oom_kills() - kills_before)
                    return status, failure, peak
            if ready:
                child.join(_POLL_S)
                code = child.exitcode or 0
                how = f"was killed (signal {-code})" if code < 0 else f"ended with status {code}"
                message = f"the process that ran {Path(spec.notebook).name} {how}"
                return ExitStatus.CRASHED, _failure("crashed", message), peak
            peak = max(peak, _resident_mib(child.pid))
            if time.monotonic() > deadline:
                hint = "Raise timeout_s of the step in the pipeline file, or reduce its work"
                failure = _failure("timed-out", f"not finished after {spec.timeout_s:g} s", hint)
                return ExitStatus.TIMED_OUT, failure, peak
            if peak > spec.memory_gib * 1024:
                hint = "Raise resources.memory_gib in the notebook's contract, or use less memory"
                message = f"used {peak:.0f} MiB, more than its {spec.memory_gib:g} GiB"
                return ExitStatus.KERNEL_DIED, _failure("out-of-memory", message, hint), peak
    except KeyboardInterrupt:
        return ExitStatus.CANCELLED, _failure("cancelled", "cancelled"), peak
    finally:
        _kill_tree(child)


def _run_child(spec: StepSpec, spec_file: Path, sender: Connection) -> None:
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from workbench.pipeline import runner

    try:
        sender.send(runner.execute_notebook(spec, spec_file))
    except OSError as error:
        sender.send((ExitStatus.CRASHED, _system_failure(error)))
    except Exception as error:
        message = f"the notebook could not be run: {type(error).__name__}: {error}"
        failure = Failure(kind="crashed", message=message, traceback=traceback.format_exc())
        sender.send((ExitStatus.CRASHED, failure))


def _system_failure(error: OSError) -> Failure:
    translated = system_error(error)
    failure = _failure("crashed", translated.what, translated.hint)
    return failure.model_copy(update={"where": translated.where})


def _kernel_died(failure: Failure, peak: float, kills: int) -> Failure:
    """Why a kernel died, as far as the system reports it."""
    used = f"peak memory {peak:.0f} MiB"
    if kills > 0:
        message = f"the system killed the kernel because memory ran out; {used}"
        return _failure("out-of-memory", message, "Use less memory, or a machine that has more")
    return failure.model_copy(update={"message": f"{failure.message}; {used}"})


def _kill_tree(child: multiprocessing.process.BaseProcess) -> None:
    """Kill the child and its descendants; kernels are in sessions of their own."""
    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        descendants = psutil.Process(child.pid).children(recursive=True)
    if child.is_alive():
        child.kill()
    child.join()
    for process in descendants:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _oom_kills() -> int:
    """Processes of this control group that the system has killed because memory ran out.

    Only a difference between two calls is informative. 0 where the system does not report it.
    """
    for path in _OOM_EVENTS:
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _resident_mib(pid: int | None) -> float:
    """Resident memory of a process and its descendants; shared pages count in each."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total / _MIB


def _cpu_seconds() -> float:
    """CPU time of all descendants that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read_outputs(folder: Path) -> dict[str, str]:
    path = folder / "outputs.json"
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _failure(kind: str, message: str, hint: str | None = None) -> Failure:
    return Failure(kind=kind, message=message, hint=hint)
