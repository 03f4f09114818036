"""Execute one notebook. The only module that imports papermill."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any, TextIO

from workbench import services
from workbench.core import secret_scan
from workbench.core.errors import ContractError, system_error
from workbench.core.workspace import Workspace
from workbench.pipeline import forked_kernel, ipynb
from workbench.pipeline.connect import SPEC_VARIABLE
from workbench.pipeline.contract import require_same_code
from workbench.pipeline.spec import (
    EXECUTED_NOTEBOOK,
    OUTPUT_FILE,
    ExitStatus,
    Failure,
    StepSpec,
)

__all__ = ()

_KERNEL_NAME = "python3"
_KERNEL_CONFIG = {
    "transport": "ipc",  # no network port
    # All output has arrived by then; a kernel that hangs gets 1 s instead of 2.5 s.
    "shutdown_wait_time": 2.0,
}
# A print of tens of megabytes takes a busy machine longer than nbclient's 4 s.
_CLIENT_CONFIG = {"iopub_timeout": 60}
_KERNEL_ARGUMENTS = [
    "--HistoryManager.enabled=False",
    "--IPKernelApp.kernel_class=workbench.pipeline.step_kernel.StepKernel",
    # `!command` and `x = !command` raise CalledProcessError, as `%%bash` does by default.
    "--InteractiveShell.system_raise_on_error=True",
]
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STATUS_OF_KIND = {
    "parameter": ExitStatus.PARAMETER,
    "contract": ExitStatus.CONTRACT,
    "service": ExitStatus.SERVICE,
    "waiting": ExitStatus.WAITING,
}


def preload() -> None:
    """Import and compile what every step needs, for children that are forked later.

    papermill loads some of it only with its first notebook: the formatter of parameters, the
    compiled JSON schema of notebooks, the folders of kernels. Opens no thread and no socket.
    """
    ipynb.import_nbformat()
    with ipynb.blocked_imports("pyarrow"):  # papermill tries it for Hadoop
        import papermill.execute  # noqa: F401
    from jupyter_client.kernelspec import KernelSpecManager
    from nbformat.v4 import new_notebook
    from papermill.translators import translate_parameters

    new_notebook()  # type: ignore[no-untyped-call]
    translate_parameters(_KERNEL_NAME, "python", {"n": 2}, "Parameters")
    KernelSpecManager().get_kernel_spec(_KERNEL_NAME)
    forked_kernel.preload_kernel()


def execute_notebook(spec: StepSpec, spec_file: Path) -> tuple[ExitStatus, Failure | None]:
    """Run the notebook. The executed notebook is saved even if it fails.

    Args:
        spec: The step.
        spec_file: Its file, which the kernel reads.

    Returns:
        How it ended, and why if it failed.
    """
    os.environ.update(_kernel_environment(spec, spec_file))
    if forked_kernel.can_fork_kernel():
        forked_kernel.prepare_fork()
    ipynb.import_nbformat()
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    # It cannot read parameters with an `Annotated` type, and warns; they were validated before.
    logging.getLogger("papermill").addFilter(_is_no_parameter_warning)  # the same one is added once
    logging.getLogger("papermill.translators").addFilter(_is_no_parameter_warning)
    folder = Path(spec.folder)
    try:
        require_same_code(Path(spec.notebook), spec.code)
        with (folder / OUTPUT_FILE).open("w", encoding="utf-8") as output:
            papermill.execute_notebook(
                spec.notebook,
                str(folder / EXECUTED_NOTEBOOK),
                parameters=spec.parameters,
                kernel_name=_KERNEL_NAME,
                cwd=spec.folder,
                progress_bar=False,
                log_output=False,
                stdout_file=output,
                stderr_file=output,
                on_cell_start=_CellAnnouncer(output),
                config=Config({"KernelManager": _KERNEL_CONFIG, "NotebookClient": _CLIENT_CONFIG}),
                extra_arguments=_KERNEL_ARGUMENTS,
            )
        require_same_code(folder / EXECUTED_NOTEBOOK, spec.code)
    except ContractError as error:
        failure = Failure(kind=error.kind, message=error.what, where=error.where, hint=error.hint)
        return ExitStatus.CONTRACT, failure
    except PapermillExecutionError as error:
        return _cell_error(error, folder)
    except DeadKernelError:
        message, hint = _death(forked_kernel.last_exit_status())
        return ExitStatus.KERNEL_DIED, Failure(
            kind="kernel-died", message=message, where=spec.notebook, hint=hint
        )
    except CellTimeoutError as error:
        return ExitStatus.TIMED_OUT, Failure(kind="timed-out", message=str(error))
    return ExitStatus.OK, None


def _is_no_parameter_warning(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("Passed unknown parameter", "Unable to parse line"))


def _death(status: int | None) -> tuple[str, str]:
    """What ended a kernel, by its exit status, and what to do about it."""
    if status is None:
        return "the kernel died", "Most often it ran out of memory"
    if status >= 0:
        return f"the kernel exited with status {status}", "A cell ended its process: raise instead"
    name = signal.Signals(-status).name
    hints = {
        "SIGKILL": "Most often the system ran out of memory",
        "SIGTERM": "Somebody or something asked it to end",
    }
    hint = hints.get(name, "A native library crashed inside the cell that ran")
    return f"the kernel was ended by {name}", hint


class _CellAnnouncer:
    """Writes the number of the next code cell, as in JupyterLab's prompts."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._cells = 0

    def __call__(self, cell: Any, cell_index: int) -> None:
        if cell.cell_type == "code" and cell.source.strip():
            self._cells += 1
            self._output.write(f"--- cell {self._cells}\n")
            self._output.flush()


def _kernel_environment(spec: StepSpec, spec_file: Path) -> dict[str, str]:
    threads = str(spec.threads)
    given = {n: v for n, v in spec.environment.items() if not secret_scan.REFERENCE.match(v)}
    if url := given.get("MLFLOW_TRACKING_URI"):  # its password is never in the specification
        given |= services.mlflow_login(Workspace(Path(spec.home)), url)
    return {
        **given,
        SPEC_VARIABLE: str(spec_file),
        "WORKBENCH_HOME": spec.home,
        "OMP_NUM_THREADS": threads,
        # Waiting threads spin briefly, then sleep: on few cores endless spinning starves other
        # processes, and sleeping at once makes training a quarter slower.
        "GOMP_SPINCOUNT": "10000",
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _cell_error(error: Any, folder: Path) -> tuple[ExitStatus, Failure]:
    """The error of a cell: from the file that our own errors write, or from its traceback."""
    cell = error.exec_count
    traceback = _ANSI_COLOUR.sub("", "\n".join(error.traceback))
    file = folder / "failure.json"
    if file.exists():
        failure = Failure(**json.loads(file.read_bytes()), cell=cell, traceback=traceback)
        return _STATUS_OF_KIND.get(failure.kind, ExitStatus.USER_ERROR), failure
    message = f"{error.ename}: {error.evalue}"
    if not traceback.strip():  # a magic that does not exist only prints
        printed = (folder / OUTPUT_FILE).read_text(encoding="utf-8", errors="replace")
        message = printed.strip().splitlines()[-1] if printed.strip() else message
    hint = f"The executed notebook: {folder / EXECUTED_NOTEBOOK}"
    number = re.match(r"\[Errno (\d+)\]", str(error.evalue))
    refused = system_error(OSError(int(number[1]), "")) if number else None
    if refused is not None and refused.hint:
        message, hint = f"{refused.what} ({message})", f"{refused.hint}. {hint}"
    if error.ename == "CalledProcessError":
        hint = f"If that failure is expected, write `!command || true`. {hint}"
    return ExitStatus.USER_ERROR, Failure(
        kind="user-error", message=message, cell=cell, traceback=traceback, hint=hint
    )
