"""Tell people how a run ended, by webhook or mail.

A target is ``https://…`` (or ``http://…``), which gets the report as JSON with a sentence under
``text``, as Slack and Mattermost read it; or ``mailto:PERSON@HOST``, sent through the SMTP server
of the environment: ``WORKBENCH_SMTP`` (``HOST:PORT``, localhost:25 by default).
"""

from __future__ import annotations

import json
import os
import smtplib
import socket
import urllib.request
from collections.abc import Iterable
from email.message import EmailMessage

from workbench.core.errors import ParameterError
from workbench.core.secret_scan import mask
from workbench.pipeline.run import RunReport

__all__ = ["check_targets", "notify"]

NOTIFY_VARIABLE = "WORKBENCH_NOTIFY"
"""Targets, separated by spaces."""

_SMTP_VARIABLE = "WORKBENCH_SMTP"
_TIMEOUT_S = 10.0
_STATES = ("waiting", "refused", "failed")
_STEPS = {
    "waiting": "Label the frames in Label Studio, then run the same command again.",
    "refused": "The candidate did not become champion; the gates say why.",
    "failed": "Fix the error, then run the same command: it continues at the failed step.",
}


def check_targets(targets: Iterable[str]) -> tuple[str, ...]:
    """The targets, if each is one.

    Raises:
        ParameterError: One is neither a web address nor ``mailto:PERSON@HOST``.
    """
    checked = tuple(targets)
    for target in checked:
        scheme, _, rest = target.partition(":")
        web = scheme in ("http", "https") and rest.startswith("//") and len(rest) > len("//")
        if not web and not (scheme == "mailto" and "@" in rest.strip("@")):
            raise ParameterError(
                "invalid target of a notification",
                where=mask(target),
                hint="Write https://HOST/PATH or mailto:PERSON@HOST",
            )
    return checked


def notify(targets: Iterable[str], report: RunReport, url: str | None = None) -> list[str]:
    """Send how a run ended, if it waits for people, was refused by a gate or failed.

    Args:
        targets: Checked by `check_targets`.
        report: How it ended.
        url: Its page in MLflow.

    Returns:
        A sentence for each target that could not be reached; a notification never fails a run.
    """
    if report.status not in _STATES:
        return []
    subject = f"{report.pipeline} {report.status}: run {report.run_id}"
    lines = [line for line in (report.reason, _STEPS[report.status], url) if line]
    problems = []
    for target in targets:
        try:
            if target.startswith("mailto:"):
                _mail(target.removeprefix("mailto:"), subject, lines)
            else:
                _post(target, report, "\n".join([subject, *lines]), url)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            where = mask(target).partition("?")[0]
            problems.append(f"no notification to {where}: {mask(str(error))}")
    return problems


def _post(target: str, report: RunReport, text: str, url: str | None) -> None:
    content = {
        "text": mask(text),
        "pipeline": report.pipeline,
        "run_id": report.run_id,
        "status": report.status,
        "reason": mask(report.reason),
        "url": url,
    }
    request = urllib.request.Request(  # noqa: S310 - `check_targets` allows http and https only
        target, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
        pass


def _mail(person: str, subject: str, lines: list[str]) -> None:
    message = EmailMessage()
    message["Subject"], message["To"] = subject, person
    message["From"] = f"workbench@{socket.getfqdn()}"
    message.set_content(mask("\n\n".join(lines)))
    host, _, port = os.environ.get(_SMTP_VARIABLE, "localhost:25").partition(":")
    with smtplib.SMTP(host, int(port or 25), timeout=_TIMEOUT_S) as server:
        server.send_message(message)
