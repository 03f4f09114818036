"""How a watched step starts: install the filter, hand the listener over, become the step.

``python -m workbench.pipeline.checking.watch.launch SOCKET MODULE ARGUMENT…``. Where no filter can
be had the module runs all the same, and the checking process learns that from the empty answer.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

from workbench.pipeline.checking.watch import seccomp
from workbench.processes import die_with_parent

PROBE = "probe"


def is_possible() -> bool:
    """Whether a process here may be watched; tried in one of its own."""
    command = [sys.executable, "-m", __name__, PROBE]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main(handle: int, command: list[str]) -> None:
    die_with_parent()
    _install_and_send(socket.socket(fileno=handle))
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606


def _install_and_send(channel: socket.socket) -> None:
    import array  # noqa: F401 - send_fds imports it, too late for a thread that is watched

    here = seccomp.machine()
    made: list[int] = []
    installed = threading.Event()

    def send() -> None:
        # From a thread that the filter does not bind: nobody could let its sendmsg go on.
        installed.wait()
        socket.send_fds(channel, [b"listener"], made)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        if here is not None:
            made.append(seccomp.install(here))
    except OSError as error:
        print(f"not watched: {error}", file=sys.stderr)
    finally:
        installed.set()
        sender.join()
    for listener in made:
        os.close(listener)
    channel.close()


def probe() -> None:
    here = seccomp.machine()
    try:
        if here is not None:
            seccomp.install(here)
            os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == PROBE:
        probe()
    main(int(sys.argv[1]), sys.argv[2:])
