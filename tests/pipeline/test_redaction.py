"""No usual encoding of a secret is left in any file of a step, in any kind of file."""

from __future__ import annotations

import base64
import bz2
import csv
import gzip
import html
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from workbench.core.workspace import Workspace
from workbench.pipeline import redaction

PEM = (
    "-----BEGIN PRIVATE " + "KEY-----\n"
    "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKB\n"
    "+wZ8Xqj0tGm3DkVs0nYpQ5rLh2eKcRfNnUuJx7aTzOiM4gHbWvEyCdFqS1lPo9Ak\n"
    "Zk3Qm9==\n"
    "-----END PRIVATE " + "KEY-----"
)
PASSWORD = 'p@ss/w"rd & <b>7é\\n'
ENCODINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "JSON": lambda s: json.dumps(s)[1:-1],
    "JSON in UTF-8": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "JSON twice": lambda s: json.dumps(json.dumps(s))[1:-1],
    "HTML": html.escape,
    "HTML by number": lambda s: "".join(f"&#{ord(c)};" for c in s),
    "HTML in JSON": lambda s: json.dumps(html.escape(s))[1:-1],
    "HTML with tags": lambda s: "".join(f"<span class='x'>{html.escape(c)}</span>" for c in s),
    "URL": lambda s: quote(s, safe=""),
    "URL with /": quote,
    "form": quote_plus,
    "lower-case URL": lambda s: "".join(f"%{b:02x}" for b in s.encode()),
    "repr": repr,
    "repr of bytes": lambda s: repr(s.encode()),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64 for URLs": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "base64 of MIME": lambda s: base64.encodebytes(s.encode()).decode(),
    "basic auth": lambda s: "Basic " + base64.b64encode(f"me:{s}".encode()).decode(),
    "basic auth, longer name": lambda s: base64.b64encode(f"mary:{s}".encode()).decode(),
    "basic auth, third alignment": lambda s: base64.b64encode(f"admin:{s}!".encode()).decode(),
    "base64 of UTF-16": lambda s: base64.b64encode(s.encode("utf-16-le")).decode(),
    "base64 twice": lambda s: base64.b64encode(base64.b64encode(s.encode())).decode(),
    "base64 of JSON": lambda s: base64.b64encode(json.dumps({"a": s}).encode()).decode(),
    "hexadecimal": lambda s: s.encode().hex(),
    "HEXADECIMAL": lambda s: s.encode().hex().upper(),
    "hexadecimal with colons": lambda s: s.encode().hex(":"),
    "hexadecimal with spaces": lambda s: s.encode().hex(" "),
    "bytes as numbers": lambda s: str(list(s.encode())),
    "letters apart": " ".join,
    "list of letters": lambda s: repr(list(s)),
    "lines with numbers": lambda s: "\n".join(f"{n}: {x}" for n, x in enumerate(s.splitlines())),
    "a diff": lambda s: "\n".join(f"+{line}" for line in s.splitlines()),
    "indented": lambda s: "\n".join(f"    {line}" for line in s.splitlines()),
}


def notebook(text: str) -> bytes:
    """An executed notebook as nbformat writes it: one JSON string for each line."""
    lines = f"before {text} after".splitlines(keepends=True)
    cell = {
        "cell_type": "code",
        "execution_count": 1,
        "id": "a",
        "metadata": {"tags": [text]},
        "outputs": [
            {"name": "stdout", "output_type": "stream", "text": lines},
            {"data": {"text/html": lines, "text/plain": lines}, "output_type": "display_data"},
            {"ename": "E", "evalue": text, "output_type": "error", "traceback": lines},
        ],
        "source": lines,
    }
    whole = {"cells": [cell], "metadata": {text: 1}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")


def csv_file(text: str) -> bytes:
    stream = io.StringIO()
    csv.writer(stream).writerows([["name", "value"], ["x", text]])
    return stream.getvalue().encode("utf-8", "surrogatepass")


def as_text(text: str) -> bytes:
    return f"before {text} after".encode("utf-8", "surrogatepass")


FILES: dict[str, Callable[[str], bytes]] = {
    "executed.ipynb": notebook,
    "output.txt": as_text,
    "deep/er/table.csv": csv_file,
    "report.html": lambda s: b"<html><body>" + as_text(s) + b"</body></html>",
    "no_suffix": as_text,
    "failure.json": lambda s: json.dumps({"message": [s, 1], s: None}).encode(),
    "metrics.jsonl": lambda s: (json.dumps({"name": s}) + "\n").encode() * 2,
    "weights.bin": lambda s: b"\x00\xff\xfe" + s.encode("utf-8", "surrogatepass") + b"\xff",
    "wide.txt": lambda s: s.encode("utf-16", "surrogatepass"),
    "wide.bin": lambda s: b"\xff\x00\x80" + s.encode("utf-16-be", "surrogatepass"),
}


def forms(secret: str) -> set[bytes]:
    """Each way in which the secret may stand in bytes."""
    found = {secret.encode("utf-8", "surrogatepass")}
    found |= {secret.encode(code, "surrogatepass") for code in ("utf-16-le", "utf-16-be")}
    for encode in ENCODINGS.values():
        found.add(encode(secret).encode("utf-8", "surrogatepass"))
    return {form for form in found if len(form) > 5}


def require_clean(folder: Path, secret: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for form in forms(secret):
                assert form not in content, path.name


@pytest.mark.parametrize("secret", [PEM, PASSWORD, "hunter2hunter2"], ids=["PEM", "odd", "plain"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_encoding_survives_in_any_file(tmp_path: Path, encoding: str, secret: str) -> None:
    encoded = ENCODINGS[encoding](secret)
    for name, make in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make(encoded))
    found = redaction.redact_folder(tmp_path, {"KEY": secret})
    assert found.known.keys() == FILES.keys()
    for name in FILES:
        if (tmp_path / name).exists():
            assert encoded.encode() not in (tmp_path / name).read_bytes()
    require_clean(tmp_path, secret)
    for name in ("executed.ipynb", "failure.json"):
        json.loads((tmp_path / name).read_bytes())  # still what it was
    body = (tmp_path / "output.txt").read_text()
    assert body.startswith("before ")
    assert body.endswith(" after")
    assert "[redacted: KEY]" in body


SECRETS = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"], max_codepoint=0x3FF),
    min_size=10,
    max_size=40,
).filter(lambda text: len(set(text)) > 6 and "redacted" not in text)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    secret=SECRETS,
    encoding=st.sampled_from(list(ENCODINGS)),
    name=st.sampled_from(list(FILES)),
    before=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    after=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
def test_whatever_the_secret_is(
    tmp_path_factory: pytest.TempPathFactory,
    secret: str,
    encoding: str,
    name: str,
    before: str,
    after: str,
) -> None:
    folder = tmp_path_factory.mktemp("step")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FILES[name](f"{before} {ENCODINGS[encoding](secret)} {after}"))
    found = redaction.redact_folder(folder, {"KEY": secret})
    assert found.known == {name: ["KEY"]}
    require_clean(folder, secret)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_other_text_is_left_as_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("step")
    contents = {name.replace("/", "_"): make(text) for name, make in FILES.items()}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    found = redaction.redact_folder(folder, {"KEY": "Zq8-never-in-text-5"})
    assert not found.known
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents


def test_compressed_files_with_a_secret_are_deleted(tmp_path: Path) -> None:
    known = {"KEY": "hunter2hunter2"}
    content = b"x" * 500 + b"hunter2hunter2" + b"y" * 500
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    (tmp_path / "b.bz2").write_bytes(bz2.compress(content))
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", content)
    note = PngImagePlugin.PngInfo()
    note.add_text("comment", content.decode(), zip=True)
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "figures" / "f.png", pnginfo=note)
    Image.new("RGB", (4, 4)).save(tmp_path / "figures" / "clean.png")
    found = redaction.redact_folder(tmp_path, known)
    assert found.deleted == {"a.gz", "b.bz2", "c.npz", "figures/f.png"}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["clean.png"]
    assert "the file was deleted" in found.message()


def test_names_links_and_pipes(tmp_path: Path) -> None:
    folder, outside = tmp_path / "step", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "signing.pem").write_text(PEM)
    (folder / "figures").symlink_to(outside)
    (folder / "key.txt").symlink_to(outside / "signing.pem")
    os.mkfifo(folder / "executed.html")
    (folder / "hunter2hunter2").mkdir()
    (folder / "hunter2hunter2" / "a-hunter2hunter2.txt").write_text("fine")
    found = redaction.redact_folder(folder, {"KEY": "hunter2hunter2"})
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert left == ["[redacted: KEY]", "[redacted: KEY]/a-[redacted: KEY].txt"]
    assert "hunter2" not in str(found)
    assert (outside / "signing.pem").read_text() == PEM


def test_what_only_looks_like_a_credential_is_redacted_too(tmp_path: Path) -> None:
    (tmp_path / "executed.ipynb").write_bytes(notebook(PEM))
    found = redaction.redact_folder(tmp_path, {})
    assert found.guessed == {"executed.ipynb": ["private key"]}
    assert "MIIEvQ" not in (tmp_path / "executed.ipynb").read_text()


def test_parts_of_a_secret_are_secrets(tmp_path: Path) -> None:
    known = {
        "DB": "postgres://me:s3cr%2Fet-word@db/x",
        "ACCOUNT": json.dumps({"client_email": "a@b.example", "private_key": PEM}),
        "LOGIN": "mary:letmein-please",
    }
    text = f"s3cr/et-word {PEM.splitlines()[2]} letmein-please a@b.example"
    (tmp_path / "output.txt").write_text(text)
    redaction.redact_folder(tmp_path, known)
    assert (tmp_path / "output.txt").read_text() == (
        "[redacted: DB] [redacted: ACCOUNT] [redacted: LOGIN] a@b.example"
    )


def test_known_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "w")
    (workspace.secrets / "deep").mkdir(parents=True)
    (workspace.secrets / "deep" / "signing.pem").write_text(PEM)
    (workspace.secrets / "signing.pub.pem").write_text("public")
    (tmp_path / ".env").write_text("export DB_PASSWORD='from-dotenv-1'\nHOST=localhost\n")
    monkeypatch.setenv("SOME_API_KEY", "abc123def456")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pass-word@mlflow.example")
    found = redaction.known_secrets(workspace, ("HOME",), tmp_path)
    expected = {
        "signing.pem": PEM,
        "DB_PASSWORD": "from-dotenv-1",
        "SOME_API_KEY": "abc123def456",
        "MLFLOW_TRACKING_URI": "pass-word",
        "HOME": os.environ["HOME"],
    }
    assert found.items() >= expected.items()
    assert not {"signing.pub.pem", "HOST", "TOKENIZERS_PARALLELISM"} & found.keys()
