"""MLflow's server behind a login: the app that `mlflow server --app-name workbench` runs.

MLflow's own ``basic-auth`` needs packages that are not installed, and derives a slow hash for each
request. Here one generated password of 256 bits is compared in constant time. Browsers ask for it;
clients send it as a basic or bearer credential.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

__all__ = ()

USER = "workbench"
PASSWORD_FILE_VARIABLE = "WORKBENCH_MLFLOW_PASSWORD_FILE"
_OPEN_PATHS = ("/health",)
"""What `workbench status` asks; it says only that the server runs."""

_Message = MutableMapping[str, Any]
_App = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]],
    Awaitable[None],
]


class LoginRequired:
    """An ASGI app that lets requests with the right credential through to another.

    Args:
        inner: Returns the other app; called once, at the first use.
        password: Returns the password.
    """

    def __init__(self, inner: Callable[[], _App], password: Callable[[], str]) -> None:
        self._make_inner, self._read_password = inner, password
        self._inner: _App | None = None
        self._allowed: tuple[bytes, ...] = ()

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        if self._inner is None:
            password = self._read_password().encode()
            self._allowed = (password, USER.encode() + b":" + password)
            self._inner = self._make_inner()
        kind = scope["type"]
        if kind == "lifespan" or scope.get("path") in _OPEN_PATHS or self._has_login(scope):
            await self._inner(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            realm = b'Basic realm="MLflow of a workbench", charset="UTF-8"'
            headers = [(b"www-authenticate", realm), (b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            body = f"Log in as {USER}; `workbench status` shows the file with the password.\n"
            await send({"type": "http.response.body", "body": body.encode()})

    def _has_login(self, scope: _Message) -> bool:
        given = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, credential = given[0].partition(b" ")
        if scheme.lower() == b"basic":
            try:
                credential = base64.b64decode(credential, validate=True)
            except binascii.Error:
                return False
            return hmac.compare_digest(credential, self._allowed[1])
        return scheme.lower() == b"bearer" and hmac.compare_digest(credential, self._allowed[0])


def _mlflow() -> _App:
    from mlflow.server.fastapi_app import app as mlflow_app

    inner: _App = mlflow_app
    return inner


app = LoginRequired(_mlflow, lambda: Path(os.environ[PASSWORD_FILE_VARIABLE]).read_text().strip())
