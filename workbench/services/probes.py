"""Free ports on loopback, and health checks of servers without their SDKs."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import time
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
# Below the range that operating systems hand to outgoing connections, so that a stopped
# server's port is seldom lost.
_FIRST_PORT, _LAST_PORT = 20000, 29999


def is_port_free(port: int) -> bool:
    """Whether a server could listen on ``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do themselves: connections of a dead predecessor must not block its port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose_port(preferred: int | None = None, *, patience: float = 0.0) -> int:
    """``preferred`` if it is free or becomes so within ``patience`` seconds, else a random one."""
    if preferred is not None:
        deadline = time.monotonic() + patience
        while not (free := is_port_free(preferred)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if free:
            return preferred
    dice = random.SystemRandom()
    for _ in range(50):
        port = dice.randint(_FIRST_PORT, _LAST_PORT)
        if is_port_free(port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


# ---- The smallest questions that prove a server is well, without its SDK: those import for seconds.


_OP_MSG = 2013
_BSON_INT32, _BSON_STRING = 0x10, 0x02


def http_ok(url: str, *, timeout: float = 2.0) -> bool:
    """Whether GET ``url`` gives a 2xx answer in time; proxies are not asked."""
    return http_status(url, timeout=timeout) // 100 == 2


def http_status(url: str, *, timeout: float = 2.0, headers: dict[str, str] | None = None) -> int:
    """The status of GET ``url``, 0 when there is no HTTP answer."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        link = kind(parts.hostname or "", parts.port, timeout=timeout)
    except (ValueError, http.client.HTTPException):
        return 0
    try:
        link.request("GET", parts.path or "/", headers=headers or {})
        return link.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        link.close()


def mongod_ok(port: int, *, host: str = "127.0.0.1", timeout: float = 2.0) -> bool:
    """Whether a MongoDB server answers ``ping``, spoken in its wire protocol (OP_MSG)."""
    command = _bson_document(
        bytes([_BSON_INT32]) + b"ping\0" + struct.pack("<i", 1),
        bytes([_BSON_STRING]) + b"$db\0" + struct.pack("<i", 6) + b"admin\0",
    )
    body = struct.pack("<i", 0) + b"\0" + command
    message = struct.pack("<iiii", 16 + len(body), 1, 0, _OP_MSG) + body
    try:
        with socket.create_connection((host, port), timeout=timeout) as link:
            link.sendall(message)
            size = struct.unpack("<i", _receive_exactly(link, 4))[0]
            reply = _receive_exactly(link, min(size, 65536) - 4)
    except (OSError, struct.error):
        return False
    return b"\x01ok\0" + struct.pack("<d", 1.0) in reply


def _bson_document(*elements: bytes) -> bytes:
    """A BSON document of ready-made elements."""
    inner = b"".join(elements) + b"\0"
    return struct.pack("<i", 4 + len(inner)) + inner


def _receive_exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = link.recv(count - len(data))
        if not piece:
            raise ConnectionError("the server hung up")
        data += piece
    return data
