"""Accounts of Label Studio users, made and opened as a person would in a browser.

The community edition has no call that makes a user; there is an invitation link, a sign-up form
behind it, and a personal access token that the new user asks for.
"""

from __future__ import annotations

from http import HTTPStatus

import requests

from workbench.errors import ServiceError

_TIMEOUT_S = 30.0


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
            return _token(browser, url)
    except requests.RequestException as error:
        raise ServiceError(
            "Label Studio did not answer", where=url, hint="Start it with `workbench up`"
        ) from error


def _log_in(browser: requests.Session, url: str, email: str, password: str) -> bool:
    answer = _submit(browser, f"{url}/user/login/", {"email": email, "password": password})
    # A wrong password shows the form again, with 200; a right one goes on to the start page.
    return answer.status_code == HTTPStatus.FOUND


def _sign_up(
    browser: requests.Session, url: str, invitation: str, email: str, password: str
) -> bool:
    answer = _submit(browser, f"{url}{invitation}", {"email": email, "password": password})
    return answer.status_code == HTTPStatus.FOUND


def _submit(browser: requests.Session, address: str, form: dict[str, str]) -> requests.Response:
    browser.get(address, timeout=_TIMEOUT_S).raise_for_status()
    guard = {"csrfmiddlewaretoken": browser.cookies.get("csrftoken") or ""}
    return browser.post(
        address,
        data={**form, **guard},
        headers={"Referer": address},
        timeout=_TIMEOUT_S,
        allow_redirects=False,
    )


def _token(browser: requests.Session, url: str) -> str:
    answer = _api(browser, "POST", f"{url}/api/token/")
    if answer.status_code == HTTPStatus.CONFLICT:
        # One token a user, shown in full only once: the lost one gives way to a new one.
        for old in _api(browser, "GET", f"{url}/api/token/").json():
            _api(browser, "POST", f"{url}/api/token/blacklist/", {"refresh": old["token"]})
        answer = _api(browser, "POST", f"{url}/api/token/")
    answer.raise_for_status()
    return str(answer.json()["token"])


def _api(
    browser: requests.Session, method: str, address: str, body: dict[str, str] | None = None
) -> requests.Response:
    guard = {"Referer": address, "X-CSRFToken": browser.cookies.get("csrftoken") or ""}
    return browser.request(method, address, json=body, headers=guard, timeout=_TIMEOUT_S)
