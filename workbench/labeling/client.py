"""One Label Studio account: the SDK client (the only place that imports label_studio_sdk), retries, sign-up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar

import requests

from workbench.core.errors import ServiceError

T = TypeVar("T")
CallKind = Literal["read", "write"]

_RETRY_WAITS_S = (0.5, 1.0, 2.0)
_BUSY_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_MAX_WAIT_S = 60.0
_BUSY_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def call_with_retries(
    url: str, kind: CallKind, call: Callable[[], T], errors: tuple[type[Exception], ...]
) -> T:
    """The answer to ``call``, made again after a growing pause where that is safe.

    Args:
        errors: What the transport raises.

    Raises:
        ServiceError: It failed for good; the cause is the transport's own error.
    """
    from pydantic import ValidationError

    tries = 0
    while True:
        try:
            return call()
        except errors as error:
            wait = _retry_wait_s(error, kind, tries)
            if wait is None:
                raise _service_error(url, error) from error
            time.sleep(wait)
            tries += 1
        except (ValidationError, ValueError) as error:
            # A proxy's page, or a server of another make: nothing that the SDK can read.
            raise ServiceError(
                "what answers is no Label Studio, or one of an unknown version",
                where=url,
                hint="Open the address in a browser; LABEL_STUDIO_URL may be wrong",
            ) from error


def http_status(error: BaseException | None) -> int:
    """HTTP status of a failed call; 0 when there was no answer."""
    direct = getattr(error, "status_code", None)
    answer = getattr(error, "response", None)
    return int(direct or getattr(answer, "status_code", None) or 0)


def may_have_landed(error: ServiceError) -> bool:
    """Whether a failed write may be, or may yet come to be, on the server."""
    import httpx

    cause = error.__cause__
    if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
        return False
    return not HTTPStatus.BAD_REQUEST <= http_status(cause) < HTTPStatus.INTERNAL_SERVER_ERROR


def server_answered(error: ServiceError) -> bool:
    """Whether the server itself answered, so that it is no longer at work on the call."""
    return http_status(error.__cause__) not in (
        0,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.GATEWAY_TIMEOUT,
    )


def was_rejected(error: ServiceError) -> bool:
    status = http_status(error.__cause__)
    return HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR


def _service_error(url: str, error: Exception) -> ServiceError:
    """The transport's error in words, with what to do next."""
    status = http_status(error)
    if not status:
        return ServiceError(
            f"Label Studio does not answer: {type(error).__name__}",
            where=url,
            hint="Start it with `workbench up`, or look at LABEL_STUDIO_URL",
        )
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return ServiceError(
            f"Label Studio refuses the token ({status})",
            where=url,
            hint="`workbench status` says where it lies; LABEL_STUDIO_TOKEN overrides it",
        )
    return ServiceError(
        f"Label Studio answered {status}: {_error_message(error)}",
        where=url,
        hint="`workbench status` says where the server's log lies" if status >= 500 else None,
    )


def _retry_wait_s(error: Exception, kind: CallKind, tries: int) -> float | None:
    """Seconds before another try; None when there is to be none."""
    import httpx

    status = http_status(error)
    if status in _BUSY_STATUSES:
        if tries >= len(_BUSY_WAITS_S):
            return None
        return _retry_after_s(error) or _BUSY_WAITS_S[tries] * random.uniform(0.75, 1.25)  # noqa: S311
    unheard = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    harmless = unheard or (kind == "read" and (status == 0 or status >= 500))
    return _RETRY_WAITS_S[tries] if harmless and tries < len(_RETRY_WAITS_S) else None


def _retry_after_s(error: Exception) -> float | None:
    """What the server's Retry-After asks for, in seconds."""
    answer = getattr(error, "response", None)
    headers = getattr(answer, "headers", None) or getattr(error, "headers", None) or {}
    asked = {str(key).lower(): value for key, value in headers.items()}.get("retry-after", "")
    return min(float(asked), _MAX_WAIT_S) if str(asked).isdigit() else None


def _error_message(error: Exception) -> str:
    """What the server said, without the tracebacks and request ids it wraps that in."""
    body = _response_body(error)
    if isinstance(body, dict):
        parts: Iterable[Any] = (body.get("validation_errors"), body.get("detail"))
        said = next((part for part in parts if part), body)
        return str(said)[:300]
    return str(body)[:300]


def _response_body(error: Exception) -> Any:
    answer = getattr(error, "response", None)
    if answer is None:
        return getattr(error, "body", None)
    try:
        return answer.json()
    except ValueError:
        return answer.text


# ---- The one place that imports Label Studio's SDK: calls to one server as one of its users.
#
# Proxies and certificates are taken from the environment as usual (``HTTPS_PROXY``, ``NO_PROXY``,
# ``SSL_CERT_FILE``); servers on this machine are always spoken to directly. `attempts` says which
# calls are made again when they fail.


TIMEOUT_S = 60.0
BULK_TIMEOUT_S = 600.0

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class ApiClient:
    """``sdk`` is the SDK's client, whose calls go through `read` or `write`."""

    def __init__(self, url: str, token: str, timeout_s: float = TIMEOUT_S) -> None:
        import httpx
        from label_studio_sdk import LabelStudio as Client

        self.url = url.rstrip("/")
        direct: dict[str, httpx.BaseTransport | None] = {
            f"all://{host}": None for host in _LOOPBACK_HOSTS
        }
        self._wire = httpx.Client(timeout=timeout_s, follow_redirects=True, mounts=direct)
        # Untyped: the SDK's generated types do not describe what the community edition answers.
        client: Any = Client
        self.sdk: Any = call_with_retries(
            self.url,
            "read",
            lambda: client(base_url=self.url, api_key=token, httpx_client=self._wire),
            _transport_errors(),
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

    def _call(self, kind: CallKind, call: Callable[[], T]) -> T:
        try:
            return call_with_retries(self.url, kind, call, _transport_errors())
        except ServiceError as error:
            if not self._renew(error):
                raise
        return call_with_retries(self.url, kind, call, _transport_errors())

    def _renew(self, error: ServiceError) -> bool:
        """Drop an access token that the server no longer takes; whether there was one to drop."""
        if http_status(error.__cause__) != HTTPStatus.UNAUTHORIZED:
            return False
        tokens = self.sdk._client_wrapper._tokens_client
        had_one = tokens._access_token is not None
        tokens._access_token = None
        return had_one


def _transport_errors() -> tuple[type[Exception], ...]:
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    return (httpx.HTTPError, ApiError)


# ---- Accounts of Label Studio users, made and opened as a person would in a browser.
#
# The community edition has no call that makes a user; there is an invitation link, a sign-up form
# behind it, and a personal access token that the new user asks for.


_BROWSER_TIMEOUT_S = 30.0


def personal_token(url: str, email: str, password: str, *, invitation: str | None = None) -> str:
    """A personal access token of a user, who is signed up first where needed.

    Args:
        url: The server.
        invitation: Path of an invitation link (``/user/signup/?token=…``), for users who may not
            exist yet.

    Raises:
        ServiceError: The server is away, or refuses the user.
    """
    try:
        with requests.Session() as browser:
            known = _log_in(browser, url, email, password) or (
                invitation is not None and _sign_up(browser, url, invitation, email, password)
            )
            if not known:
                raise ServiceError(
                    f"Label Studio refuses the user {email}",
                    where=url,
                    hint="Their password is not the one kept under secrets; an administrator of the"
                    " server can delete that user, who is then made anew",
                )
            return _new_token(browser, url)
    except requests.RequestException as error:
        raise ServiceError(
            "Label Studio did not answer", where=url, hint="Start it with `workbench up`"
        ) from error


def _log_in(browser: requests.Session, url: str, email: str, password: str) -> bool:
    answer = _submit_form(browser, f"{url}/user/login/", {"email": email, "password": password})
    # A wrong password shows the form again, with 200; a right one goes on to the start page.
    return answer.status_code == HTTPStatus.FOUND


def _sign_up(
    browser: requests.Session, url: str, invitation: str, email: str, password: str
) -> bool:
    answer = _submit_form(browser, f"{url}{invitation}", {"email": email, "password": password})
    return answer.status_code == HTTPStatus.FOUND


def _submit_form(
    browser: requests.Session, address: str, form: dict[str, str]
) -> requests.Response:
    browser.get(address, timeout=_BROWSER_TIMEOUT_S).raise_for_status()
    guard = {"csrfmiddlewaretoken": browser.cookies.get("csrftoken") or ""}
    return browser.post(
        address,
        data={**form, **guard},
        headers={"Referer": address},
        timeout=_BROWSER_TIMEOUT_S,
        allow_redirects=False,
    )


def _new_token(browser: requests.Session, url: str) -> str:
    answer = _api_call(browser, "POST", f"{url}/api/token/")
    if answer.status_code == HTTPStatus.CONFLICT:
        # One token a user, shown in full only once: the lost one gives way to a new one.
        for old in _api_call(browser, "GET", f"{url}/api/token/").json():
            _api_call(browser, "POST", f"{url}/api/token/blacklist/", {"refresh": old["token"]})
        answer = _api_call(browser, "POST", f"{url}/api/token/")
    answer.raise_for_status()
    return str(answer.json()["token"])


def _api_call(
    browser: requests.Session, method: str, address: str, body: dict[str, str] | None = None
) -> requests.Response:
    guard = {"Referer": address, "X-CSRFToken": browser.cookies.get("csrftoken") or ""}
    return browser.request(method, address, json=body, headers=guard, timeout=_BROWSER_TIMEOUT_S)
