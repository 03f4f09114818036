"""Ports on loopback. A server keeps its port for as long as nobody else takes it."""

from __future__ import annotations

import random
import socket
import time

LOOPBACK = "127.0.0.1"
# Below the range that operating systems hand to outgoing connections, so that a stopped
# server's port is seldom lost.
_FIRST, _LAST = 20000, 29999


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do themselves: connections of a dead predecessor must not block its port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(preferred: int | None = None, *, patience: float = 0.0) -> int:
    """``preferred`` if it is free or becomes so within ``patience`` seconds, else a random one."""
    if preferred is not None:
        deadline = time.monotonic() + patience
        while not (free := is_free(preferred)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if free:
            return preferred
    dice = random.SystemRandom()
    for _ in range(50):
        port = dice.randint(_FIRST, _LAST)
        if is_free(port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
