"""Find credentials in text, and redact them.

Known values are searched as they are and in every usual encoding, see
`workbench.core.encoded_values`. Unknown credentials are guessed from their patterns.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from workbench.core import encoded_values
from workbench.core.encoded_values import (
    MIN_ENCODED_LENGTH,
    MIN_LENGTH,
    Span,
    Value,
    find_values,
    unescaped,
    unescaped_view,
)

__all__ = ()

_REDACTED = "[redacted: {}]"

_MIN_LINE_LENGTH = 16
"""Each line of a longer secret, such as a PEM key, is a secret from this length on."""

_MAX_DOTENV = 100_000
_MIN_PIN = 1000
_MIN_GUESSED_LENGTH = 8
"""Of a value whose name only looks like that of a secret."""

_KEY = "private key"
_SHAPES = (
    (
        _KEY,
        ("PRIVATE KEY",),
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
        r"(?:-----END [A-Z0-9 ]*KEY(?: BLOCK)?-----|\Z)",
    ),
    (_KEY, ("AGE-SECRET-KEY",), r"\bAGE-SECRET-KEY-1[0-9A-Z]{40,}"),
    (_KEY, ("PuTTY-User",), r"^PuTTY-User-Key-File-[\s\S]*\Z"),
    ("AWS access key", ("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    (
        "AWS secret key",
        ("aws_secret", "AWS_SECRET"),
        r"(?i)aws_secret_access_key['\"]?\s*[=:]\s*['\"]?([A-Za-z0-9/+]{40})\b",
    ),
    ("GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"\bgh[pousr]_[A-Za-z0-9]{36,}"),
    ("GitHub token", ("github_pat",), r"\bgithub_pat_[A-Za-z0-9_]{50,}"),
    (
        "GitLab token",
        ("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-"),
        r"\bgl(?:pat|dt|rt|cbt|ptt)-[A-Za-z0-9_-]{20,}",
    ),
    ("Hugging Face token", ("hf_",), r"\bhf_[A-Za-z0-9]{30,}\b"),
    ("Slack token", ("xox",), r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    (
        "webhook address",
        ("hooks.slack",),
        r"https://hooks\.slack\.com/(?:services|workflows)/([\w/]{20,})",
    ),
    (
        "API key",
        ("sk_", "pk_", "rk_", "sk-"),
        r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)[-_][A-Za-z0-9_-]{16,}",
    ),
    ("API key", ("npm_",), r"\bnpm_[A-Za-z0-9]{36}"),
    ("API key", ("pypi-",), r"\bpypi-AgE[A-Za-z0-9_-]{50,}"),
    ("API key", ("hvs.",), r"\bhvs\.[A-Za-z0-9_-]{20,}"),
    ("API key", ("SG.",), r"\bSG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{40,}"),
    ("API key", ("dapi",), r"\bdapi[0-9a-f]{32}\b"),
    ("Google API key", ("AIza",), r"\bAIza[A-Za-z0-9_-]{35}\b"),
    ("Google API key", ("ya29.",), r"\bya29\.[A-Za-z0-9_-]{30,}"),
    (
        "JSON web token",
        ("eyJ",),
        r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{8,}",
    ),
    ("bearer token", ("bearer", "Bearer", "BEARER"), r"(?i)\bbearer\s+([A-Za-z0-9._~+/-]{20,}=*)"),
    (
        "password of an account",
        ("basic", "Basic", "BASIC"),
        r"(?i)\bauthorization['\"]?\s*[:=]\s*['\"]?basic\s+([\w+/-]{8,}=*)",
    ),
    (
        "password in an address",
        ("://",),
        r"\b[a-z][a-z0-9+.-]{0,30}://[^\s:/@'\"]{0,200}:([^\s/@'\"{}$<]{3,300})@",
    ),
    (
        "secret in an address",
        ("://",),
        r"(?i)\b[a-z][a-z0-9+.-]{0,30}://[^\s'\"<>]{0,2000}[?&;](?:access_?token|token|api_?key|key"
        r"|sig|secret|signature|password|passwd|pwd|x-amz-signature)=([^\s&'\"<>#{}$]{8,})",
    ),
    (
        "password in a connection string",
        ("assword=", "wd=", "ccountKey=", "ccessKey=", "PASSWORD=", "accountkey="),
        r"(?i)\b(?:password|pwd|accountkey|sharedaccesskey)=([^\s;&'\"{}$<]{3,})(?=;)"
        r"|;\s*(?:password|pwd|accountkey|sharedaccesskey)=([^\s;&'\"{}$<]{3,})",
    ),
)
"""Name, strings of which one must be there, and the pattern."""

_COMPILED = tuple((name, some, re.compile(shape, re.MULTILINE)) for name, some, shape in _SHAPES)
_LONG_WORD = 400
"""A pattern inside a longer word is chance: the word is an image in base64."""

_STRONG_WORDS = ("password", "passwd", "passphrase", "secret", "credential")
_WEAK_WORDS = {"pass", "pwd", "pw", "token", "auth", "apikey", "pat", "dsn"}
_KEYS = {"api", "access", "secret", "private", "signing", "encryption", "auth", "account"} | {
    *("shared", "master", "service", "subscription", "ssh", "client", "license", "license")
}
_NOT_SECRET_ENDINGS = frozenset(
    [
        "name",
        "names",
        "env",
        "environ",
        "variable",
        "var",
        "file",
        "files",
        "path",
        "paths",
        "dir",
        "folder",
        "folders",
        "count",
        "counts",
        "length",
        "size",
        "limit",
        "limits",
        "type",
        "kind",
        "help",
        "hint",
        "field",
        "column",
        "index",
        "url",
        "host",
        "user",
        "store",
        "policy",
        "rules",
        "parallelism",
        "algorithm",
        "id",
        "ids",
        "header",
        "sock",
        "socket",
        "store",
        "helper",
    ]
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# password = "…", "api_key": "…", token: str = '…'
_QUOTED = re.compile(
    r"""(?ix) (?<![\w.-]) (?P<name>
    [\w.-]{0,64}? (?:pass|pwd|secret|token|key|credential|auth) [\w.-]{0,64})
    \\?['"]? \s* (?: :\s*[\w.\[\]| ]+= | = | : ) \s*
    [rbu]? (?P<quote>\\?['"]) (?P<value>[^'"\n\\]{8,}) (?P=quote)"""
)
# DB_PASSWORD=…, export TOKEN=…, and in settings `password: …`
_UNQUOTED = re.compile(
    r"""(?imx) ^[ \t+-]* (?:(?:export|set|env|-)[ \t]+)? (?P<name>
    [\w.-]{0,64}? (?:pass|pwd|secret|token|key|credential|auth) [\w.-]{0,64})
    (?P<sign>[ \t]*[=:][ \t]*)
    (?P<value>[^\s"'\#][^\n\#]*?) [ \t\r]* (?:[ \t]\#[^\n]*)? $"""
)
_NAMED = ("pass", "pwd", "secret", "token", "key", "credential", "auth")
_REACH = 1000
_MAX_SHAPE = 3000
"""Characters around such a word, or a string of a pattern, in which a credential is searched."""

_CODE = re.compile(r"[()\[\]{},;]|^[A-Za-z_]\w*\.[\w.]+$")
_PLAIN_WORDS = {"str", "int", "float", "bool", "none", "true", "false", "null", "bytes"}
_PLACEHOLDER = re.compile(
    r"(?i)^(?:env:|\$|\{|<|%|models:|sha256:|\[redacted: |x+$|\*+$"
    r"|your|example|change|placeholder)"
)
_MIN_ENTROPY_BITS = 2.8
"""Bits per character from which a value looks random."""

REFERENCE = re.compile(r"\$\{env:(\w+)\}\Z")
"""A secret by reference: the name of an environment variable, never its value."""

_SECRET_FILE = re.compile(
    r"""(?ix) (?:^|/) (?: \.env(?:rc|\.[^/]*)? | [^/]*\.env
    | \.(?:netrc|npmrc|pypirc|pgpass|htpasswd|git-credentials|dockercfg|my\.cnf)
    | id_(?:rsa|dsa|ecdsa|ed25519) | (?:credentials?|secrets?)(?:\.\w+)?
    | [^/]*\.(?:pem|key|p12|pfx|jks|keystore|ppk|kdbx|tfvars) ) \Z"""
)
_SETTINGS_FILE = re.compile(r"(?i)\.(?:ya?ml|toml|ini|cfg|conf|properties|json|env|sh|service)\Z")


@dataclass(frozen=True)
class Leak:
    """A credential in a text, without its value.

    Attributes:
        name: The secret's name if its value is known, else the kind of credential.
        start: First character.
        end: First character after it.
        line: Line number, from 1.
        known: Whether the value is known.
    """

    name: str
    start: int
    end: int
    line: int
    known: bool = False


def scan_text(text: str, known: Mapping[str, str], *, settings: bool = False) -> list[Leak]:
    """Every credential in ``text``, in order and without overlaps.

    Args:
        text: The text to search.
        known: Secret values by name; very short values are skipped.
        settings: The text is a settings file, where values have no quotes.
    """
    found = _find_known(text, known)
    found += [_leak_at(name, text, span) for name, span in _guess(text, settings=settings)]
    plain = unescaped(text)
    if plain is not None and any(True for _ in _guess(plain, settings=settings)):
        for read, origin in unescaped_view(text):
            for name, span in _guess(read, settings=settings):
                found.append(_leak_at(name, text, origin(*span)))
    return _without_overlaps(found)


def scan_known(text: str, known: Mapping[str, str]) -> list[Leak]:
    """Only known values, see `scan_text`."""
    return _without_overlaps(_find_known(text, known))


def redact(text: str, leaks: Sequence[Leak]) -> str:
    """``text`` with each leak replaced by a marker with its name."""
    for leak in sorted(leaks, key=lambda leak: leak.start, reverse=True):
        text = text[: leak.start] + _REDACTED.format(leak.name) + text[leak.end :]
    return text


def mask(text: str, known: Mapping[str, str] | None = None) -> str:
    """``text`` with everything redacted that is, or looks like, a credential."""
    return redact(text, scan_text(text, known or {}))


def is_secret_name(name: str) -> bool:
    """Whether a variable or parameter of this name holds a secret, such as ``db_password``."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _NOT_SECRET_ENDINGS:
        return False
    if _is_strong(name):
        return True
    singular = [word.removesuffix("s") if len(word) > 4 else word for word in words]
    is_key = singular[-1] == "key" and (len(words) > 1 and words[-2] in _KEYS)
    return is_key or bool(_WEAK_WORDS.intersection(singular)) or "apikey" in "".join(words)


def _is_strong(name: str) -> bool:
    words = "".join(_WORD.findall(name)).lower()
    return any(strong in words for strong in _STRONG_WORDS)


def is_secret_file(path: str) -> bool:
    """Whether a file of this name is there to hold secrets, such as ``.env`` or ``id_rsa``."""
    return bool(_SECRET_FILE.search(path.replace("\\", "/")))


def is_settings_file(path: str) -> bool:
    """Whether a file of this name holds settings, whose values have no quotes."""
    return bool(_SETTINGS_FILE.search(path))


def secret_in_value(name: str, value: Any, known: Mapping[str, str]) -> str | None:
    """Why a parameter must not be recorded; None if it may be.

    Args:
        name: Of the parameter; those of mappings inside ``value`` count as well.
        value: JSON, or what becomes JSON.
        known: Secret values by name.
    """
    if isinstance(value, Mapping):
        found = (
            secret_in_value(str(key), key, known) or secret_in_value(str(key), inner, known)
            for key, inner in value.items()
        )
        return next((reason for reason in found if reason), None)
    if isinstance(value, list | tuple | set | frozenset):
        return next((r for inner in value if (r := secret_in_value(name, inner, known))), None)
    if value is None or isinstance(value, bool) or value == "":
        return None
    text = str(value)
    if REFERENCE.match(text):
        return None
    if leaks := scan_text(text, known, settings=True):
        name = leaks[0].name
        return f"contains the value of {name}" if leaks[0].known else f"seems to contain a {name}"
    likely = isinstance(value, str) and text != name and not _PLACEHOLDER.search(text)
    if _is_strong(name):
        likely = likely or (isinstance(value, int) and abs(value) >= _MIN_PIN)
    else:
        likely = likely and len(text) >= MIN_ENCODED_LENGTH and text.lower() not in _PLAIN_WORDS
    random_key = name.lower().endswith("key") and len(text) >= 12 and _looks_random(text)
    return "looks like a secret" if likely and (is_secret_name(name) or random_key) else None


def known_in_environment() -> dict[str, str]:
    """Secrets of the process's environment: by names of variables, and passwords in addresses."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        found |= _secret_of_variable(name, value)
    return found


def _secret_of_variable(name: str, value: str) -> dict[str, str]:
    """The secret in a variable that no contract declares, if there is one."""
    word = value.isalpha() and len(value) < _MIN_LINE_LENGTH  # it would match ordinary text
    if is_secret_name(name) and len(value) >= _MIN_GUESSED_LENGTH and not word:
        return {} if value.startswith(("/", "~")) else {name: value}
    password = _password_of(value)
    return {name: password} if password and len(password) >= MIN_LENGTH else {}


def known_in_dotenv(folder: Path) -> dict[str, str]:
    """Secrets of the ``.env`` files in ``folder``, by the names of their variables."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob(".env*")) if folder.is_dir() else ():
        try:
            lines = path.read_text(encoding="utf-8", errors="replace")[:_MAX_DOTENV].splitlines()
        except OSError:
            continue
        for line in lines:
            name, sign, value = line.strip().removeprefix("export ").partition("=")
            if sign:
                found |= _secret_of_variable(name.strip(), value.strip().strip("'\""))
    return found


def _without_overlaps(found: list[Leak]) -> list[Leak]:
    found.sort(key=lambda leak: (leak.start, not leak.known, -leak.end))
    kept: list[Leak] = []
    for leak in found:
        if not kept or leak.start >= kept[-1].end:
            kept.append(leak)
        elif leak.end > kept[-1].end:  # overlaps the one before: redact both
            last = kept.pop()
            kept.append(Leak(last.name, last.start, leak.end, last.line, last.known))
    return kept


def _leak_at(name: str, text: str, span: Span, *, known: bool = False) -> Leak:
    return Leak(name, *span, line=text.count("\n", 0, span[0]) + 1, known=known)


# Known values


def _find_known(text: str, known: Mapping[str, str]) -> list[Leak]:
    values = _values(tuple(sorted(known.items())))
    return [_leak_at(name, text, span, known=True) for name, span in find_values(text, values)]


def names_in_bytes(content: bytes, known: Mapping[str, str]) -> set[str]:
    """Names of the secrets whose values stand in a binary file, as they are, encoded or packed."""
    return encoded_values.names_in_bytes(content, _values(tuple(sorted(known.items()))))


@lru_cache(maxsize=16)
def _values(known: tuple[tuple[str, str], ...]) -> tuple[Value, ...]:
    return tuple(sorted({(part, name) for name, secret in known for part in _parts_of(secret)}))


def _parts_of(value: str) -> Iterator[str]:
    """A secret, and what is as secret as it: the password in an address, each line of a key."""
    value = value.strip()
    yield value
    if password := _password_of(value):
        yield password
        yield unquote(password)
    lines = value.splitlines()
    if len(lines) > 1:
        for line in lines:
            if len(line.strip()) >= _MIN_LINE_LENGTH and not line.startswith("-----"):
                yield line.strip()
    if value.startswith("{"):  # such as the key of a service account
        try:
            content = json.loads(value)
        except (ValueError, RecursionError):
            return
        for name, inner in content.items():
            if isinstance(inner, str) and (
                is_secret_name(name) or any(True for _ in _find_shaped(inner))
            ):
                yield from _parts_of(inner)
    elif re.fullmatch(r"[^\s:/]+:[^\s:/]{6,}", value):  # user:password
        yield value.partition(":")[2]


def _password_of(address: str) -> str | None:
    try:
        return urlsplit(address).password if "://" in address and "@" in address else None
    except ValueError:
        return None


# Unknown credentials


def _guess(text: str, *, settings: bool) -> Iterator[tuple[str, Span]]:
    yield from _find_shaped(text)
    lower = text.lower()
    if len(lower) != len(text):  # a letter whose lower case has two characters
        lower = text
    for start, end in _around(lower, _NAMED, reach=_REACH):
        yield from _find_assigned(text, start, end, settings=settings)


def _find_shaped(text: str) -> Iterator[tuple[str, Span]]:
    for name, some, shape in _COMPILED:
        for start, end in _around(text, some, reach=_MAX_SHAPE):
            for match in shape.finditer(text, start, len(text) if name == _KEY else end):
                group = next((n for n in range(1, shape.groups + 1) if match.group(n)), 0)
                if not _PLACEHOLDER.search(match.group(group)) and not _in_long_word(text, match):
                    yield name, match.span(group)


def _around(text: str, words: Iterable[str], *, reach: int) -> Iterator[Span]:
    """The surroundings of these words, merged where they overlap."""
    places: list[int] = []
    for word in words:
        at = text.find(word)
        while at >= 0:
            places.append(at)
            at = text.find(word, at + len(word))
    places.sort()
    at = 0
    while at < len(places):
        first = last = places[at]
        while at < len(places) and places[at] - last <= 2 * reach:
            last = places[at]
            at += 1
        yield max(first - reach, 0), min(last + reach, len(text))


def _in_long_word(text: str, match: re.Match[str]) -> bool:
    around = text[max(match.start() - _LONG_WORD, 0) : match.start()]
    return len(around) == _LONG_WORD and re.fullmatch(r"[A-Za-z0-9+/=_-]+", around) is not None


def _find_assigned(
    text: str, start: int, end: int, *, settings: bool
) -> Iterator[tuple[str, Span]]:
    for match in _QUOTED.finditer(text, start, end):
        value = match["value"]
        plain = _PLACEHOLDER.search(value) or not _looks_random(value)
        if not plain and is_secret_name(match["name"]):
            yield f"value of {match['name']}", match.span("value")
    for match in _UNQUOTED.finditer(text, start, end):
        name, value = match["name"], match["value"]
        if " " in value or _PLACEHOLDER.search(value) or value.lower() in _PLAIN_WORDS:
            continue
        if value.isdigit() and not _is_strong(name):
            continue  # such as the number of tokens
        dotenv = match["sign"] == "=" and name.upper() == name
        random = len(value) >= _MIN_GUESSED_LENGTH and _looks_random(value)
        if (settings or dotenv or random) and is_secret_name(name) and not _CODE.search(value):
            yield f"value of {name}", match.span("value")


def _looks_random(value: str) -> bool:
    kinds = [any(map(test, value)) for test in (str.isdigit, str.isalpha)]
    return all(kinds) and " " not in value and _entropy_bits(value) >= _MIN_ENTROPY_BITS


def _entropy_bits(value: str) -> float:
    """Shannon entropy of a character, in bits."""
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares)
