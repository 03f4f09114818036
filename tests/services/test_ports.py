"""Ports stay, and give way to whoever is there."""

from __future__ import annotations

import socket
import threading

from workbench.services import ports


def listener() -> socket.socket:
    return socket.create_server((ports.LOOPBACK, 0))


def test_a_taken_port_is_not_free_and_another_is_chosen() -> None:
    with listener() as server:
        taken = server.getsockname()[1]
        assert not ports.is_free(taken)
        assert ports.choose(taken) != taken


def test_the_remembered_port_is_kept() -> None:
    port = ports.choose()
    assert ports.choose(port) == port


def test_a_port_that_becomes_free_in_time_is_kept() -> None:
    server = listener()
    port = server.getsockname()[1]
    closing = threading.Timer(0.2, server.close)
    closing.start()
    assert ports.choose(port, patience=20.0) == port
    closing.join()


def test_a_closed_connection_does_not_block_the_port() -> None:
    with listener() as server:
        port = server.getsockname()[1]
        with socket.create_connection((ports.LOOPBACK, port)):
            answered, _ = server.accept()
            answered.close()  # the server's side closes first and lingers in TIME_WAIT
    assert ports.is_free(port)
