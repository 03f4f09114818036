"""The seccomp watch records opens, changes and connections of threads and child processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.pipeline.checking import seccomp
from workbench.pipeline.checking.watch import (
    AccessLog,
    AccessPolicy,
    AccessWatch,
    CellWindow,
    software_paths,
)

needs_seccomp = pytest.mark.skipif(not seccomp.can_watch(), reason="seccomp is not available")


def run_watched(folder: Path, *module: str) -> AccessLog:
    with AccessWatch(folder) as watch:
        name, handle = watch.launch[:2]
        command = [sys.executable, "-m", name, handle, *module]
        subprocess.run(command, check=True, pass_fds=watch.handles, timeout=60)
    return watch.log


@needs_seccomp
def test_every_access_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("relative", "sub/inner", "old", "sub/gone", "cut", "thread", "child"):
        (tmp_path / f"{name}.txt").write_text("x")
    log = run_watched(tmp_path, "tests.pipeline.checking.file_accesses", str(tmp_path))
    assert log.coverage == "complete"
    root = f"{tmp_path}/"
    seen = {(kind, path.removeprefix(root)) for kind, path in log.accesses if root in path}
    assert {path for kind, path in seen if kind == "read"} == {
        "relative.txt",
        "sub",
        "sub/inner.txt",
        "thread.txt",
        "child.txt",
    }
    assert {path for kind, path in seen if kind == "write"} == {
        "old.txt",
        "new.txt",
        "sub/gone.txt",
        "made",
        "link.txt",
        "cut.txt",
    }
    assert {path.removeprefix(root) for path in log.created if root in path} == {
        "new.txt",
        "made",
        "link.txt",
    }
    addresses = {
        path: one.is_own for (kind, path), one in log.accesses.items() if kind == "connect"
    }
    own = {address for address, is_own in addresses.items() if is_own}
    assert set(addresses) - own == {"127.0.0.2:4001", "127.0.0.3:4002", "::1:4003"}
    assert len(own) == 1
    assert log.accesses[("read", root + "sub")].is_folder


@needs_seccomp
def test_calls_fail_when_the_listener_is_closed(tmp_path: Path) -> None:
    """A watched process without a listener does not hang."""
    code = (
        "import os, sys\nfrom workbench.pipeline.checking import seccomp\n"
        "listener = seccomp.install_filter(seccomp.current_architecture())\nos.close(listener)\n"
        "try:\n    os.open('x', os.O_RDONLY)\nexcept OSError as error:\n    os._exit(error.errno)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=20)
    assert done.returncode == 38  # ENOSYS


def test_both_architectures_define_the_same_calls() -> None:
    x86, arm = (seccomp._ARCHITECTURES[name] for name in ("x86_64", "aarch64"))
    modern = set(arm.calls.values())
    assert modern <= set(x86.calls.values())
    assert {"openat", "openat2", "connect", "sendto", "execve", "renameat2"} <= modern
    for machine in (x86, arm):
        assert len(seccomp._filter_program(machine)) == len(machine.calls) - 1 + 4 + 7


def test_the_policy_reports_undeclared_accesses_only(tmp_path: Path) -> None:
    log = AccessLog("complete")
    inside, outside = str(tmp_path / "in" / "x"), "/srv/elsewhere/y"
    for kind, target, at in (
        ("read", inside, 11),
        ("read", outside, 12),
        ("write", inside, 13),
        ("read", "/srv/elsewhere/early", 1),
        ("read", "/srv/elsewhere/late", 99),
        ("read", os.__file__, 12),
        ("write", "/dev/null", 12),
        ("connect", "10.0.0.1:80", 21),
        ("connect", "10.0.0.2:443", 21),
        ("connect", "10.0.0.9:53", 21),
    ):
        log.add(kind, target, at)  # type: ignore[arg-type]
    log.add("read", str(tmp_path), 12, is_folder=True)
    windows = [CellWindow(1, 10, 19), CellWindow(2, 20, 30)]
    reads = (str(tmp_path / "in"), *software_paths())
    policy = AccessPolicy(reads, writes=("/dev",), hosts=("10.0.0.1", "10.0.0.2:80"))
    undeclared = [(seen.kind, seen.target, cell) for seen, cell in policy.undeclared(log, windows)]
    assert undeclared == [
        ("read", outside, 1),
        ("write", inside, 1),
        ("connect", "10.0.0.2:443", 2),
    ]
    assert list(policy.undeclared(log, [])) == []
    unending = [CellWindow(1, 10, math.inf)]
    assert ("read", "/srv/elsewhere/late") in {
        (seen.kind, seen.target) for seen, _ in policy.undeclared(log, unending)
    }


@needs_seccomp
def test_the_overhead_is_small(tmp_path: Path) -> None:
    """Five thousand opens take 0.2 s on an idle machine."""
    code = "for _ in range(5000): os.close(os.open('/etc/hostname', os.O_RDONLY))"
    started = time.monotonic()
    log = run_watched(tmp_path, "timeit", "-n1", "-r1", "-s", "import os", code)
    assert time.monotonic() - started < 10
    assert ("read", "/etc/hostname") in log.accesses


@needs_seccomp
def test_onnx_runtime_sends_no_telemetry(tmp_path: Path) -> None:
    """By default it writes a device id below the home folder and contacts a server."""
    log = run_watched(tmp_path, "timeit", "-n1", "-r1", "import workbench, onnxruntime")
    assert not [key for key in log.accesses if key[0] == "connect" or "Microsoft" in key[1]]
