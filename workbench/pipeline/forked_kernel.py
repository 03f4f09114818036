"""Kernels as forks of a warm process, for steps that run in one.

A kernel of its own spends most of half a second on imports that all kernels share. Here a child is
forked before anything else happens, waits until the client has written its connection file, and
then becomes the kernel: the same program, arguments, environment and folder that
``python -m ipykernel_launcher`` would get, in a session of its own.

An interpreter reads some things only once. So `ready` asks that string hashes are the fixed ones,
and that no library is loaded that sizes its threads when it is imported.
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

_PROGRAM = "ipykernel_launcher"
_PROVISIONER_NAME = "workbench-fork"
_SIZE_THREADS_AT_IMPORT = ("numpy", "torch", "cv2", "pyarrow", "faiss", "onnxruntime")
_POLL_S = 0.02


def preload_kernel() -> None:
    """Import what every kernel imports. No thread and no socket is opened here."""
    import ipykernel.kernelapp  # noqa: F401

    from workbench.pipeline import (
        step_kernel,  # noqa: F401
    )
    from workbench.records import types  # noqa: F401


def can_fork_kernel() -> bool:
    """Whether a fork of this process is as good as an interpreter of its own."""
    return (
        "ipykernel.kernelapp" in sys.modules
        and not sys.flags.hash_randomization
        and not any(name in sys.modules for name in _SIZE_THREADS_AT_IMPORT)
        and threading.active_count() == 1
    )


def prepare_fork() -> None:
    """Fork the child that becomes the next kernel that this process starts."""
    _ForkProvisioner.waiting = _WaitingChild()
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[_PROVISIONER_NAME] = EntryPoint(
        _PROVISIONER_NAME, f"{__name__}:{_ForkProvisioner.__name__}", factory.GROUP_NAME
    )
    factory.default_provisioner_name = _PROVISIONER_NAME


class _WaitingChild:
    """A forked child, with the part of `subprocess.Popen` that provisioners use."""

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        orders, self._orders = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run_as_kernel(orders)
        os.close(orders)

    def start(self, arguments: Sequence[str], environment: dict[str, str], folder: str) -> None:
        with os.fdopen(self._orders, "w") as stream:
            json.dump([list(arguments), environment, folder], stream)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
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
    """Hands a kernel's orders to the waiting child instead of starting an interpreter."""

    waiting: _WaitingChild | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        child = _ForkProvisioner.waiting
        if child is None or _PROGRAM not in cmd or cmd[0] != sys.executable:
            return await super().launch_kernel(cmd, **kwargs)
        _ForkProvisioner.waiting = None
        environment = {**(kwargs.get("env") or os.environ), "JPY_PARENT_PID": str(os.getpid())}
        folder = str(kwargs.get("cwd") or Path.cwd())
        parent = f"--IPKernelApp.parent_handle={os.getpid()}"  # a class reads the variable, once
        child.start([*cmd[cmd.index(_PROGRAM) + 1 :], parent], environment, folder)
        self.process = child  # type: ignore[assignment]  # it has all that is used of a Popen
        self.pid = self.pgid = child.pid
        self.cwd = Path(folder)
        return self.connection_info


def _run_as_kernel(orders: int) -> NoReturn:
    """Be the kernel that ``orders`` describe, once they come; ends with it."""
    status = 1
    try:
        die_with_parent()
        os.setsid()
        os.closerange(3, orders)
        os.closerange(orders + 1, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with os.fdopen(orders) as stream:
            told = stream.read()
        if not told:  # nobody wanted a kernel
            os._exit(0)
        arguments, environment, folder = json.loads(told)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]  # its workers'
        atexit._clear()  # what the warm process has to do at its end is not ours
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
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    # What an interpreter does at its end, in its order.
    threading._shutdown()  # type: ignore[attr-defined]  # joins threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status
