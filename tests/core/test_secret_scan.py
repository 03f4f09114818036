"""Credentials are found in every encoding, ordinary text is not, and redaction is complete."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from workbench.core import secret_scan

JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"HS256"}', b'{"sub":"12345"}', b"signature-bytes-here")
)
KEY = "-----BEGIN EC PRIVATE " + "KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----"
SHAPES = {
    "AWS access key": "AKIA" + "Z7Q2M4X8B1C3D5E6",
    "GitHub token": "ghp_" + "a1B2" * 9,
    "Hugging Face token": "hf_" + "aB3" * 11,
    "JSON web token": JWT,
    "private key": KEY,
    "bearer token": "x9" * 15,
    "password in an address": "hunter22",
}


def shown(name: str, value: str) -> str:
    if name == "bearer token":
        return f"Authorization: Bearer {value}"
    if name == "password in an address":
        return f"postgres://me:{value}@db.example/x"
    return f"before {value} after"


@pytest.mark.parametrize("name", SHAPES)
def test_each_pattern_is_found_and_redacted(name: str) -> None:
    text = "line one\n" + shown(name, SHAPES[name])
    (leak,) = secret_scan.scan_text(text, {})
    assert (leak.name, leak.line, leak.known) == (name, 2, False)
    cleaned = secret_scan.redact(text, [leak])
    assert SHAPES[name] not in cleaned
    assert f"[redacted: {name}]" in cleaned
    assert not secret_scan.scan_text(cleaned, {})


def test_known_values_are_found_in_every_encoding() -> None:
    value = 'p@ss "word"/1'
    encoded = base64.b64encode(value.encode()).decode()
    for text in (value, json.dumps({"a": value}), "p%40ss%20%22word%22%2F1", encoded):
        (leak,) = secret_scan.scan_text(f"x {text} y", {"DB_PASSWORD": value})
        assert (leak.name, leak.known) == ("DB_PASSWORD", True)
        assert "word" not in secret_scan.redact(f"x {text} y", [leak])


@pytest.mark.parametrize(
    "text",
    [
        'password = "k3JH9xQ2pLm8"',
        "api_key: str = 'zz81Lq0PmN44xY'",
        '{"access_token": "f00ba4b4z9x8c7v6"}',
    ],
)
def test_quoted_values_that_look_random_are_found(text: str) -> None:
    (leak,) = secret_scan.scan_text(text, {})
    assert leak.name.startswith("value of ")


@pytest.mark.parametrize(
    "text",
    [
        'password = os.environ["DB_PASSWORD"]',
        'token = "env:LABEL_STUDIO_TOKEN"',
        'secret = step.secret("DB_PASSWORD")',
        'tokenizer = "bert-base-uncased"',
        'password: str = ""',
        "the bearer of bad news",
        "sha256:" + "ab12" * 16,
        "https://example.org:8080/path@v2",
        'token_help = "paste the token of the first account"',
    ],
)
def test_ordinary_text_is_not_a_credential(text: str) -> None:
    assert secret_scan.scan_text(text, {"EMPTY": "", "SHORT": "ab"}) == []


def test_overlapping_leaks_are_merged() -> None:
    token = SHAPES["GitHub token"]
    text = f'token = "{token}"'
    leaks = secret_scan.scan_text(text, {"A": token[:20], "B": token[10:]})
    assert len(leaks) == 1
    assert token[12:] not in secret_scan.redact(text, leaks)


def test_secrets_between_weights_are_found() -> None:
    noise = np.random.default_rng(0).bytes(2**20)
    known = {"SHORT": "hunter22", "TOKEN": "s3cr3t-token-of-the-registry"}
    encoded = base64.b64encode(known["TOKEN"].encode())
    for place, names in ((b"", set()), (b"hunter22", {"SHORT"}), (encoded, {"TOKEN"})):
        assert secret_scan.names_in_bytes(noise + place + noise, known) == names
