"""Calls to a server that may be busy, slow or away: tried again where that is safe, else told.

Reads are tried again when the server is busy or gone for a moment. Writes are tried again only
when the server cannot have acted on them, because a task or an annotation sent twice is there
twice; whoever writes reconciles by reading what is there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Literal, TypeVar

from workbench.errors import ServiceError

T = TypeVar("T")
Kind = Literal["read", "write"]

_WAITS_S = (0.5, 1.0, 2.0)
_BUSY_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_LONGEST_WAIT_S = 60.0
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def attempt(url: str, kind: Kind, call: Callable[[], T], errors: tuple[type[Exception], ...]) -> T:
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
            wait = _wait(error, kind, tries)
            if wait is None:
                raise translated(url, error) from error
            time.sleep(wait)
            tries += 1
        except (ValidationError, ValueError) as error:
            # A proxy's page, or a server of another make: nothing that the SDK can read.
            raise ServiceError(
                "what answers is no Label Studio, or one of an unknown version",
                where=url,
                hint="Open the address in a browser; LABEL_STUDIO_URL may be wrong",
            ) from error


def status_of(error: BaseException | None) -> int:
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
    return not HTTPStatus.BAD_REQUEST <= status_of(cause) < HTTPStatus.INTERNAL_SERVER_ERROR


def was_answered(error: ServiceError) -> bool:
    """Whether the server itself answered, so that it is no longer at work on the call."""
    return status_of(error.__cause__) not in (0, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)


def is_refused(error: ServiceError) -> bool:
    status = status_of(error.__cause__)
    return HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR


def translated(url: str, error: Exception) -> ServiceError:
    """The transport's error in words, with what to do next."""
    status = status_of(error)
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
        f"Label Studio answered {status}: {_message(error)}",
        where=url,
        hint="`workbench status` says where the server's log lies" if status >= 500 else None,
    )


def _wait(error: Exception, kind: Kind, tries: int) -> float | None:
    """Seconds before another try; None when there is to be none."""
    import httpx

    status = status_of(error)
    if status in _BUSY:
        if tries >= len(_BUSY_WAITS_S):
            return None
        return _asked_to_wait(error) or _BUSY_WAITS_S[tries] * random.uniform(0.75, 1.25)  # noqa: S311
    unheard = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    harmless = unheard or (kind == "read" and (status == 0 or status >= 500))
    return _WAITS_S[tries] if harmless and tries < len(_WAITS_S) else None


def _asked_to_wait(error: Exception) -> float | None:
    """What the server's Retry-After asks for, in seconds."""
    answer = getattr(error, "response", None)
    headers = getattr(answer, "headers", None) or getattr(error, "headers", None) or {}
    asked = {str(key).lower(): value for key, value in headers.items()}.get("retry-after", "")
    return min(float(asked), _LONGEST_WAIT_S) if str(asked).isdigit() else None


def _message(error: Exception) -> str:
    """What the server said, without the tracebacks and request ids it wraps that in."""
    body = _body(error)
    if isinstance(body, dict):
        parts: Iterable[Any] = (body.get("validation_errors"), body.get("detail"))
        said = next((part for part in parts if part), body)
        return str(said)[:300]
    return str(body)[:300]


def _body(error: Exception) -> Any:
    answer = getattr(error, "response", None)
    if answer is None:
        return getattr(error, "body", None)
    try:
        return answer.json()
    except ValueError:
        return answer.text
