"""HTTP client of a Label Studio server: authentication, retries and error messages.

The only module that imports label_studio_sdk. Proxies and certificates come from the environment
(``HTTPS_PROXY``, ``NO_PROXY``, ``SSL_CERT_FILE``); loopback servers are always called directly.

Reads are retried when the server is busy or unavailable. Writes are retried only when the server
cannot have processed them: a task or annotation sent twice would exist twice. After a failed write
the caller reads back what the server holds, see `may_have_landed`.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import tenacity

from workbench.core.errors import ServiceError

__all__ = ()

T = TypeVar("T")

BULK_TIMEOUT_S = 600.0

_TIMEOUT_S = 60.0
_SIGN_UP_TIMEOUT_S = 30.0
_RETRIES = 3
_BUSY_RETRIES = 5
_FIRST_WAIT_S = 0.5
_MAX_RETRY_AFTER_S = 60.0
_BUSY_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_LOOPBACK: dict[str, httpx.BaseTransport | None] = {
    f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")
}


class ApiClient:
    """One user's connection to one server.

    Attributes:
        sdk: The SDK's client. Its methods are called inside `read` or `write`.
    """

    def __init__(self, url: str, token: str) -> None:
        from label_studio_sdk import LabelStudio as SdkClient

        self.url = url.rstrip("/")
        self._http = httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True, mounts=_LOOPBACK)
        # Untyped: the SDK's generated types do not match the answers of the community edition.
        sdk_client: Any = SdkClient
        self.sdk: Any = None
        self.sdk = self.read(
            lambda: sdk_client(base_url=self.url, api_key=token, httpx_client=self._http)
        )

    def read(self, call: Callable[[], T]) -> T:
        """Result of a call that changes nothing on the server; retried on any temporary failure.

        Raises:
            ServiceError: The call failed; ``__cause__`` is the HTTP client's or the SDK's error.
        """
        return self._call("read", call)

    def write(self, call: Callable[[], T]) -> T:
        """Result of a call that must not take effect twice; retried only if it was never processed.

        Raises:
            ServiceError: The call failed; ``__cause__`` is the HTTP client's or the SDK's error.
        """
        return self._call("write", call)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One HTTP request, for calls that the SDK lacks or encodes slowly.

        Args:
            options: Keyword arguments of `httpx.Client.request`.
        """
        headers = {**self._headers(), **options.pop("headers", {})}
        response = self._http.request(method, f"{self.url}{path}", headers=headers, **options)
        return response.raise_for_status()

    def download(self, path: str, query: dict[str, str], target: Path) -> None:
        """Stream a response into a file."""
        options: dict[str, Any] = {"headers": self._headers(), "timeout": BULK_TIMEOUT_S}
        with self._http.stream("GET", f"{self.url}{path}", params=query, **options) as response:
            response.raise_for_status()
            with target.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)

    def _headers(self) -> dict[str, str]:
        return dict(self.sdk._client_wrapper.get_headers())

    def _call(self, kind: Literal["read", "write"], call: Callable[[], T]) -> T:
        from label_studio_sdk.core.api_error import ApiError

        retrying = tenacity.Retrying(retry=_should_retry(kind), wait=_wait_s, reraise=True)
        try:
            try:
                return retrying(call)
            except (httpx.HTTPError, ApiError) as error:
                if not self._drop_expired_token(error):
                    raise
                return retrying(call)
        except (httpx.HTTPError, ApiError) as error:
            raise _service_error(self.url, error) from error
        except ValueError as error:  # also pydantic's ValidationError: a proxy's page, for example
            raise ServiceError(
                "the response is not from Label Studio, or from an unsupported version",
                where=self.url,
                hint="Open the address in a browser; LABEL_STUDIO_URL may be wrong",
            ) from error

    def _drop_expired_token(self, error: Exception) -> bool:
        """Forget an access token that the server rejects; the SDK then requests a new one."""
        if self.sdk is None or http_status(error) != HTTPStatus.UNAUTHORIZED:
            return False
        tokens = self.sdk._client_wrapper._tokens_client
        had_one = tokens._access_token is not None
        tokens._access_token = None
        return had_one


def http_status(error: BaseException | None) -> int:
    """HTTP status of a failed call; 0 if there was no response."""
    direct = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    return int(direct or getattr(response, "status_code", None) or 0)


def may_have_landed(error: ServiceError) -> bool:
    """Whether a failed write may have been processed, or may still be."""
    never_sent = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
    return not never_sent and not was_rejected(error)


def server_answered(error: ServiceError) -> bool:
    """Whether the server itself responded, so that it no longer processes the call."""
    unanswered = (0, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
    return http_status(error.__cause__) not in unanswered


def was_rejected(error: ServiceError) -> bool:
    """Whether the server rejected the call (4xx)."""
    status = http_status(error.__cause__)
    return HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR


def _should_retry(
    kind: Literal["read", "write"],
) -> Callable[[tenacity.RetryCallState], bool]:
    def decide(state: tenacity.RetryCallState) -> bool:
        error = _error_of(state)
        status = http_status(error)
        if status in _BUSY_STATUSES:
            return state.attempt_number <= _BUSY_RETRIES
        never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        no_response = isinstance(error, httpx.HTTPError) and status == 0
        temporary = no_response or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        safe = never_sent or (kind == "read" and temporary)
        return safe and state.attempt_number <= _RETRIES

    return decide


def _wait_s(state: tenacity.RetryCallState) -> float:
    requested = _retry_after_s(_error_of(state))
    growing = tenacity.wait_exponential_jitter(initial=_FIRST_WAIT_S, jitter=_FIRST_WAIT_S / 2)
    return requested or growing(state)


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _retry_after_s(error: BaseException | None) -> float | None:
    """The response's Retry-After header, in seconds."""
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or getattr(error, "headers", None) or {}
    value = {str(key).lower(): value for key, value in headers.items()}.get("retry-after", "")
    return min(float(value), _MAX_RETRY_AFTER_S) if str(value).isdecimal() else None


def _service_error(url: str, error: Exception) -> ServiceError:
    status = http_status(error)
    if not status:
        return ServiceError(
            f"Label Studio does not respond: {type(error).__name__}",
            where=url,
            hint="Start it with `workbench up`, or check LABEL_STUDIO_URL",
        )
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return ServiceError(
            f"Label Studio rejects the token ({status})",
            where=url,
            hint="`workbench status` shows the token's file; LABEL_STUDIO_TOKEN overrides it",
        )
    return ServiceError(
        f"Label Studio answered {status}: {_error_message(error)}",
        where=url,
        hint="`workbench status` shows the server's log file" if status >= 500 else None,
    )


def _error_message(error: Exception) -> str:
    """The server's message without the traceback and request id around it."""
    response = getattr(error, "response", None)
    if response is None:
        body = getattr(error, "body", None)
    else:
        try:
            body = response.json()
        except ValueError:
            body = response.text
    if isinstance(body, dict):
        body = body.get("validation_errors") or body.get("detail") or body
    return str(body)[:300]


def personal_token(url: str, email: str, password: str, *, invitation: str) -> str:
    """Personal access token of a user, who is signed up if there is no such account.

    The community edition has no API for creating users: this follows the invitation link and the
    sign-up form as a browser does.

    Args:
        url: The server.
        invitation: Path of an invitation link, ``/user/signup/?token=…``.

    Raises:
        ServiceError: The server is not reachable or rejects the user.
    """
    login = {"email": email, "password": password}
    try:
        with httpx.Client(base_url=url, timeout=_SIGN_UP_TIMEOUT_S, mounts=_LOOPBACK) as browser:
            # Both forms redirect on success, and are shown again with status 200 on failure.
            for form in ("/user/login/", invitation):
                if _submit_form(browser, form, login).status_code == HTTPStatus.FOUND:
                    return _new_token(browser)
    except httpx.HTTPError as error:
        raise ServiceError(
            "Label Studio does not respond", where=url, hint="Start it with `workbench up`"
        ) from error
    raise ServiceError(
        f"Label Studio rejects the user {email}",
        where=url,
        hint="The password differs from the one stored under secrets; let an administrator of the"
        " server delete that user, who is then created again",
    )


def _submit_form(browser: httpx.Client, path: str, form: dict[str, str]) -> httpx.Response:
    browser.get(path).raise_for_status()
    token = {"csrfmiddlewaretoken": browser.cookies.get("csrftoken") or ""}
    referer = {"Referer": str(browser.base_url.join(path))}
    return browser.post(path, data={**form, **token}, headers=referer)


def _new_token(browser: httpx.Client) -> str:
    response = _api_call(browser, "POST", "/api/token/")
    if response.status_code == HTTPStatus.CONFLICT:
        # A user has one token, shown in full only once: revoke the lost one.
        for old in _api_call(browser, "GET", "/api/token/").json():
            _api_call(browser, "POST", "/api/token/blacklist/", {"refresh": old["token"]})
        response = _api_call(browser, "POST", "/api/token/")
    return str(response.raise_for_status().json()["token"])


def _api_call(
    browser: httpx.Client, method: str, path: str, body: dict[str, str] | None = None
) -> httpx.Response:
    headers = {
        "Referer": str(browser.base_url),
        "X-CSRFToken": browser.cookies.get("csrftoken") or "",
    }
    return browser.request(method, path, json=body, headers=headers)
