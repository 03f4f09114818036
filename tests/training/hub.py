"""A model hub for one repository: the addresses and headers that the hub's own client asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 33 + "1"
ASKED = list[str]


@contextmanager
def serve(folder: Path, name: str) -> Iterator[tuple[str, ASKED]]:
    """The hub's address, and the paths asked for so far."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    asked: ASKED = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            asked.append(f"{self.command} {path}")
            file = path.removeprefix(f"{name}/resolve/{COMMIT}/")
            if path in (f"api/models/{name}", f"api/models/{name}/revision/main"):
                rows = [{"rfilename": each} for each in sorted(files)]
                self._send(_json({"id": name, "sha": COMMIT, "siblings": rows}), "info", body)
            elif path == f"api/models/{name}/tree/{COMMIT}":
                self._send(_json([_row(each, files[each]) for each in sorted(files)]), "tree", body)
            elif file != path and file in files:
                self._send(files[file], hashlib.sha256(files[file]).hexdigest(), body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send(self, content: bytes, tag: str, body: bool) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _row(path: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha256(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
