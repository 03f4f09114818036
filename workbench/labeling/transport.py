"""The one place that imports Label Studio's SDK: calls to one server as one of its users.

Proxies and certificates are taken from the environment as usual (``HTTPS_PROXY``, ``NO_PROXY``,
``SSL_CERT_FILE``); servers on this machine are always spoken to directly. `attempts` says which
calls are made again when they fail.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from workbench.errors import ServiceError
from workbench.labeling import attempts

T = TypeVar("T")

TIMEOUT_S = 60.0
BULK_TIMEOUT_S = 600.0

_LOCAL = ("127.0.0.1", "localhost", "[::1]")


class Transport:
    """``sdk`` is the SDK's client, whose calls go through `read` or `write`."""

    def __init__(self, url: str, token: str, timeout_s: float = TIMEOUT_S) -> None:
        import httpx
        from label_studio_sdk import LabelStudio as Client

        self.url = url.rstrip("/")
        direct: dict[str, httpx.BaseTransport | None] = {f"all://{host}": None for host in _LOCAL}
        self._wire = httpx.Client(timeout=timeout_s, follow_redirects=True, mounts=direct)
        # Untyped: the SDK's generated types do not describe what the community edition answers.
        client: Any = Client
        self.sdk: Any = attempts.attempt(
            self.url,
            "read",
            lambda: client(base_url=self.url, api_key=token, httpx_client=self._wire),
            _errors(),
        )

    def read(self, call: Callable[[], T]) -> T:
        """The answer to a call that changes nothing."""
        return self._call("read", call)

    def write(self, call: Callable[[], T]) -> T:
        """The answer to a call that must not be made twice."""
        return self._call("write", call)

    def http(self, method: str, path: str, **options: Any) -> Any:
        """A bare call, where the SDK would take longer to encode than the server to answer."""
        headers = {**self._headers(), **options.pop("headers", {})}
        answer = self._wire.request(method, f"{self.url}{path}", headers=headers, **options)
        return answer.raise_for_status()

    def download(self, path: str, query: dict[str, str], to: Path) -> None:
        """Keep an answer in a file; it is never whole in memory."""
        options: dict[str, Any] = {"headers": self._headers(), "timeout": BULK_TIMEOUT_S}
        with self._wire.stream("GET", f"{self.url}{path}", params=query, **options) as answer:
            answer.raise_for_status()
            with to.open("wb") as file:
                for piece in answer.iter_bytes():
                    file.write(piece)

    def _headers(self) -> dict[str, str]:
        return dict(self.sdk._client_wrapper.get_headers())

    def _call(self, kind: attempts.Kind, call: Callable[[], T]) -> T:
        try:
            return attempts.attempt(self.url, kind, call, _errors())
        except ServiceError as error:
            if not self._renew(error):
                raise
        return attempts.attempt(self.url, kind, call, _errors())

    def _renew(self, error: ServiceError) -> bool:
        """Drop an access token that the server no longer takes; whether there was one to drop."""
        if attempts.status_of(error.__cause__) != HTTPStatus.UNAUTHORIZED:
            return False
        tokens = self.sdk._client_wrapper._tokens_client
        had_one = tokens._access_token is not None
        tokens._access_token = None
        return had_one


def _errors() -> tuple[type[Exception], ...]:
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    return (httpx.HTTPError, ApiError)
