"""Entry point of a watched step: install the seccomp filter, hand over its listener, exec the step."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

from workbench.core.processes import die_with_parent
from workbench.pipeline.checking import seccomp

PROBE = "probe"


def can_watch() -> bool:
    """Whether a process here may be watched; tried in one of its own."""
    command = [sys.executable, "-m", __name__, PROBE]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main(handle: int, command: list[str]) -> None:
    die_with_parent()
    _install_and_send(socket.socket(fileno=handle))
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606


def _install_and_send(channel: socket.socket) -> None:
    import array  # noqa: F401 - send_fds imports it, too late for a thread that is watched

    here = seccomp.current_architecture()
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
            made.append(seccomp.install_filter(here))
    except OSError as error:
        print(f"not watched: {error}", file=sys.stderr)
    finally:
        installed.set()
        sender.join()
    for listener in made:
        os.close(listener)
    channel.close()


def probe() -> None:
    here = seccomp.current_architecture()
    try:
        if here is not None:
            seccomp.install_filter(here)
            os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == PROBE:
        probe()
    main(int(sys.argv[1]), sys.argv[2:])
