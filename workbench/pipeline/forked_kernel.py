"""Kernels as forks of a preloaded process.

A new interpreter spends about half a second on imports that all kernels share. Here a child is
forked first, waits until the client has written the connection file, and then becomes the kernel:
the same program, arguments, environment and folder as ``python -m ipykernel_launcher``, in its own
session.

Some settings are read only when an interpreter or a library starts. So `can_fork_kernel` requires
fixed string hashes, and that no library is loaded which sizes its thread pools on import.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing.process
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NoReturn

from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from workbench.core.processes import die_with_parent

__all__ = ()

_PROGRAM = "ipykernel_launcher"
_PROVISIONER_NAME = "workbench-fork"
_SIZE_THREADS_AT_IMPORT = ("numpy", "torch", "cv2", "pyarrow", "faiss", "onnxruntime")
_POLL_S = 0.02


def preload_kernel() -> None:
    """Import what every kernel imports. No thread and no socket is opened here."""
    import ipykernel.kernelapp  # noqa: F401

    from workbench.pipeline import step, step_kernel  # noqa: F401
    from workbench.records import types  # noqa: F401


def can_fork_kernel() -> bool:
    """Whether a fork of this process is equivalent to a new interpreter."""
    return (
        "ipykernel.kernelapp" in sys.modules
        and not sys.flags.hash_randomization
        and not any(name in sys.modules for name in _SIZE_THREADS_AT_IMPORT)
        and threading.active_count() == 1
    )


def prepare_fork() -> None:
    """Fork the child that becomes the next kernel of this process."""
    _ForkProvisioner.waiting = _WaitingChild()
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[_PROVISIONER_NAME] = EntryPoint(
        _PROVISIONER_NAME, f"{__name__}:{_ForkProvisioner.__name__}", factory.GROUP_NAME
    )
    factory.default_provisioner_name = _PROVISIONER_NAME


def last_exit_status() -> int | None:
    """Exit status of the last kernel that was forked, negative for a signal; None if unknown."""
    child = _ForkProvisioner.started
    return child.poll() if child is not None else None


class _WaitingChild:
    """A forked child with the methods of `subprocess.Popen` that provisioners use."""

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        request, self._request = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run_as_kernel(request)
        os.close(request)

    def start(self, arguments: Sequence[str], environment: dict[str, str], folder: str) -> None:
        with os.fdopen(self._request, "w") as stream:
            json.dump([list(arguments), environment, folder], stream)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(_POLL_S)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _ForkProvisioner(LocalProvisioner):
    """Starts a kernel in the waiting child instead of a new interpreter."""

    waiting: _WaitingChild | None = None
    started: _WaitingChild | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        child = _ForkProvisioner.waiting
        if child is None or _PROGRAM not in cmd or cmd[0] != sys.executable:
            return await super().launch_kernel(cmd, **kwargs)
        _ForkProvisioner.waiting = None
        environment = {**(kwargs.get("env") or os.environ), "JPY_PARENT_PID": str(os.getpid())}
        folder = str(kwargs.get("cwd") or Path.cwd())
        # ipykernel reads the variable only on import.
        parent = f"--IPKernelApp.parent_handle={os.getpid()}"
        child.start([*cmd[cmd.index(_PROGRAM) + 1 :], parent], environment, folder)
        _ForkProvisioner.started = child
        self.process = child  # type: ignore[assignment]  # has what is used of a Popen
        self.pid = self.pgid = child.pid
        self.cwd = Path(folder)
        return self.connection_info


def _run_as_kernel(request: int) -> NoReturn:
    """Wait for a request on this pipe, run the kernel that it describes, and exit."""
    status = 1
    try:
        die_with_parent()
        os.setsid()
        os.closerange(3, request)
        os.closerange(request + 1, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with os.fdopen(request) as stream:
            text = stream.read()
        if not text:  # no kernel was started
            os._exit(0)
        arguments, environment, folder = json.loads(text)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]  # for its workers
        atexit._clear()  # exit handlers of the preloaded process
        sys.argv = [_PROGRAM, *arguments]
        status = _run_kernel_app(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _run_kernel_app(arguments: Sequence[str]) -> int:
    from ipykernel.kernelapp import IPKernelApp

    status = 0
    try:
        IPKernelApp.launch_instance(list(arguments))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    # What an interpreter does at exit, in the same order.
    threading._shutdown()  # type: ignore[attr-defined]  # joins non-daemon threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status
