"""The fleet's folder, and the HTTP server that vehicles ask; loopback by default.

    FOLDER/image/{metadata,targets}/   image repository: static files
    FOLDER/director/                   root metadata of the director
    FOLDER/director.sqlite             all state
    FOLDER/keys/                       online keys: director, snapshot and timestamp, time
    FOLDER/offline-keys/               no server reads these; move them to another machine

Image repository, director and time server have keys of their own and share a process here. In
production they are three hosts: whoever holds this process holds the director.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from workbench.core.errors import RecordError, WorkbenchError
from workbench.core.parsing import UNREADABLE, describe_unreadable
from workbench.core.workspace import Workspace, write_atomic
from workbench.fleet import metadata
from workbench.fleet.director import Director
from workbench.fleet.reasons import Reason, UpdateRefused
from workbench.fleet.verification import Trust

__all__ = ()

_MAX_MESSAGE_BYTES: Final = 1 << 20


class FleetFolder:
    """Everything of a fleet's backend on disk.

    Args:
        root: The folder.
        workspace: Its audit log gets the events of rollouts.
    """

    def __init__(self, root: Path, workspace: Workspace | None = None) -> None:
        self.root = root
        self._workspace = workspace
        offline, online = root / "offline-keys", root / "keys"
        self.image_keys = metadata.image_keys(offline / "image", online / "image")
        self.director_keys = metadata.director_keys(offline / "director", online / "director")
        self.images = metadata.ImageRepository(root / "image", self.image_keys)
        self.director_roots = root / "director"

    def create(self, now: datetime) -> None:
        """Generate all keys, and sign both roots and an empty image repository."""
        self.image_keys.create()
        self.director_keys.create()
        metadata.save_signer(metadata.new_signer(), self.root / "keys" / "time.pem")
        self.images.create(now)
        root = metadata.create_root(self.director_keys, now, consistent_snapshot=False)
        write_atomic(self.director_roots / "1.root.json", root)

    @property
    def exists(self) -> bool:
        """Whether `create` has finished."""
        return (self.director_roots / "1.root.json").exists()

    def trust(self) -> Trust:
        """What the factory puts into vehicles."""
        return Trust(
            director_root=(self.director_roots / "1.root.json").read_bytes(),
            image_root=(self.images.metadata / "1.root.json").read_bytes(),
            time_key=metadata.load_signer(self.root / "keys" / "time.pem").public_key,
        )

    def director(self, *, serving: bool = False) -> Director:
        """The director; with its online keys if it answers vehicles."""
        database = self.root / "director.sqlite"
        if not serving:
            return Director(database, workspace=self._workspace)
        signers = metadata.DirectorSigners.load(self.director_keys)
        time_signer = metadata.load_signer(self.root / "keys" / "time.pem")
        return Director(database, signers, time_signer, workspace=self._workspace)


class FleetServer:
    """Answers vehicles over HTTP, in threads.

    Args:
        folder: The fleet.
        port: 0 for a free one.
        tick: Called every ``tick_s``; advances rollouts.
    """

    def __init__(
        self,
        folder: FleetFolder,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tick: Callable[[Director], None] | None = None,
        tick_s: float = 1.0,
    ) -> None:
        if not folder.exists:
            raise RecordError("no fleet here", where=folder.root, hint="Run `workbench fleet up`")
        self.director = folder.director(serving=True)
        self._folder, self._tick, self._tick_s = folder, tick, tick_s
        self._http = ThreadingHTTPServer((host, port), partial(_Handler, folder, self.director))
        self._http.daemon_threads = True
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        """Address for vehicles."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> FleetServer:
        """Serve in background threads."""
        for target in (self._http.serve_forever, self._refresh):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def stop(self) -> None:
        """Stop serving."""
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join(timeout=10)

    def _refresh(self) -> None:
        while not self._stop.wait(self._tick_s):
            try:
                self._folder.images.refresh(self.director.clock.now())
                if self._tick is not None:
                    self._tick(self.director)
            except WorkbenchError as error:  # vehicles still get answers; the next tick tries again
                print(f"fleet server: {error}", flush=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(
        self, folder: FleetFolder, director: Director, *arguments: object, **options: object
    ) -> None:
        self._folder, self._director = folder, director
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def handle(self) -> None:
        """Answer until the vehicle goes away, which it may do at any time."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Metadata and target files."""
        parts = [unquote(part) for part in self.path.split("/")[1:]]
        if any(part in {"", ".", ".."} or "/" in part or "\0" in part for part in parts):
            self._answer(HTTPStatus.NOT_FOUND, b"")
        elif parts[0] == "image" and len(parts) > 2 and parts[1] in {"metadata", "targets"}:
            self._send_file(self._folder.root.joinpath(*parts))
        elif parts[0] == "director" and len(parts) == 3 and parts[2].endswith(".root.json"):
            self._send_file(self._folder.director_roots / parts[2])
        elif parts[0] == "director" and len(parts) == 3:
            self._call(lambda: self._director.metadata_file(parts[1], parts[2]))
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"")

    def do_POST(self) -> None:
        """Messages of vehicles."""
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= _MAX_MESSAGE_BYTES:
            self.close_connection = True
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"")
            return
        content = self.rfile.read(length)
        if self.path == "/time":
            self._call(lambda: self._director.time_message(content))
        elif self.path == "/manifest":
            self._call(lambda: json.dumps(self._director.manifest(content)).encode())
        elif self.path == "/report":
            self._call(lambda: json.dumps(self._director.report(content)).encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"")

    def _call(self, answer: Callable[[], bytes]) -> None:
        try:
            self._answer(HTTPStatus.OK, answer())
        except UpdateRefused as refused:
            unknown = refused.reason is Reason.UNKNOWN_VEHICLE
            body = {"reason": refused.reason, "message": refused.what}
            status = HTTPStatus.NOT_FOUND if unknown else HTTPStatus.BAD_REQUEST
            self._answer(status, json.dumps(body).encode())
        except WorkbenchError as error:  # not the vehicle's fault: it asks again later
            body = {"reason": error.kind, "message": error.what}
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, json.dumps(body).encode())
        except UNREADABLE as error:
            body = {"reason": Reason.MESSAGE_INVALID, "message": describe_unreadable(error)}
            self._answer(HTTPStatus.BAD_REQUEST, json.dumps(body).encode())

    def _send_file(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Length", str(path.stat().st_size))
                self.end_headers()
                shutil.copyfileobj(stream, self.wfile)
        except ConnectionError:
            raise
        except OSError:  # it does not exist, is a folder, or no file can have this name
            self._answer(HTTPStatus.NOT_FOUND, b"")

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """Nothing: a fleet polls all day."""
