"""Accesses files and addresses in every way that the watch records; runs as a watched module."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path


def main(root: Path) -> None:
    os.chdir(root)
    Path("relative.txt").read_text()
    handle = os.open("sub", os.O_RDONLY | os.O_DIRECTORY)
    os.close(os.open("inner.txt", os.O_RDONLY, dir_fd=handle))
    (root / "old.txt").rename("new.txt")
    os.unlink("gone.txt", dir_fd=handle)
    Path("made").mkdir()
    Path("link.txt").symlink_to("new.txt")
    os.truncate("cut.txt", 0)
    with contextlib.suppress(FileNotFoundError):
        Path("missing.txt").read_text()
    with contextlib.suppress(FileExistsError):
        Path("sub").mkdir()
    thread = threading.Thread(target=(root / "thread.txt").read_text)
    thread.start()
    thread.join()
    subprocess.run(["cat", "child.txt"], check=True, stdout=subprocess.DEVNULL)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.2", 4001))
        sender.sendmsg([b"x"], [], 0, ("127.0.0.3", 4002))
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        with server.accept()[0] as peer:
            peer.sendall(b"x")
    with socket.socket(socket.AF_INET6) as client6:
        client6.connect_ex(("::1", 4003))
    for _ in range(2000):
        os.close(os.open("relative.txt", os.O_RDONLY))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
