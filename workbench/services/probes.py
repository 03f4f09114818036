"""Free ports on loopback, and health checks of servers without importing their slow SDKs."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import time
from urllib.parse import urlsplit

__all__ = ()

LOOPBACK = "127.0.0.1"
# Below the range that operating systems use for outgoing connections, so that the port of a
# stopped server usually stays free.
_FIRST_PORT, _LAST_PORT = 20000, 29999

_OP_MSG = 2013
_BSON_INT32, _BSON_STRING = 0x10, 0x02


def is_port_free(port: int) -> bool:
    """Whether a server could listen on ``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set this, too: closed connections of a previous server do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose_port(preferred: int | None = None, *, timeout_s: float = 0.0) -> int:
    """``preferred`` if it is free within ``timeout_s`` seconds, else a random free port."""
    if preferred is not None:
        deadline = time.monotonic() + timeout_s
        while not (free := is_port_free(preferred)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if free:
            return preferred
    generator = random.SystemRandom()
    for _ in range(50):
        port = generator.randint(_FIRST_PORT, _LAST_PORT)
        if is_port_free(port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def http_ok(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether GET ``url`` returns a 2xx status in time; proxies are not used."""
    return http_status(url, timeout_s=timeout_s) // 100 == 2


def http_status(url: str, *, timeout_s: float = 2.0) -> int:
    """The status of GET ``url``; 0 without an HTTP response."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    except (ValueError, http.client.HTTPException):
        return 0
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def mongod_ok(path: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a MongoDB server answers ``ping`` in its wire protocol (OP_MSG).

    Args:
        path: Its Unix socket.
        timeout_s: Of the connection, and of each part of the answer.
    """
    command = _bson_document(
        bytes([_BSON_INT32]) + b"ping\0" + struct.pack("<i", 1),
        bytes([_BSON_STRING]) + b"$db\0" + struct.pack("<i", 6) + b"admin\0",
    )
    body = struct.pack("<i", 0) + b"\0" + command
    message = struct.pack("<iiii", 16 + len(body), 1, 0, _OP_MSG) + body
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.sendall(message)
            size = struct.unpack("<i", _receive_exactly(connection, 4))[0]
            reply = _receive_exactly(connection, min(size, 65536) - 4)
    except (OSError, struct.error):
        return False
    return b"\x01ok\0" + struct.pack("<d", 1.0) in reply


def _bson_document(*elements: bytes) -> bytes:
    inner = b"".join(elements) + b"\0"
    return struct.pack("<i", 4 + len(inner)) + inner


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise ConnectionError("the server closed the connection")
        data += chunk
    return data
