"""No usual encoding of a secret is left in any file of a step, in any kind of file."""

from __future__ import annotations

import base64
import binascii
import bz2
import csv
import gzip
import html
import io
import json
import lzma
import os
import random
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from workbench.core.workspace import Workspace
from workbench.pipeline import redaction
from workbench.records.store import Store
from workbench.records.types import Selection

PEM = (
    "-----BEGIN PRIVATE " + "KEY-----\n"
    "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKB\n"
    "+wZ8Xqj0tGm3DkVs0nYpQ5rLh2eKcRfNnUuJx7aTzOiM4gHbWvEyCdFqS1lPo9Ak\n"
    "Zk3Qm9==\n"
    "-----END PRIVATE " + "KEY-----"
)
b64 = base64.b64encode


def uu(content: bytes) -> str:
    """Lines as uuencode writes them."""
    lines = [content[at : at + 45] for at in range(0, len(content), 45)]
    return b"".join(map(binascii.b2a_uu, lines)).decode()


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
    "base64 three times": lambda s: b64(b64(b64(s.encode()))).decode(),
    "base64 of hexadecimal": lambda s: b64(s.encode().hex().encode()).decode(),
    "hexadecimal of base64": lambda s: b64(s.encode()).hex(),
    "base64 of gzip": lambda s: b64(gzip.compress(s.encode() * 2)).decode(),
    "base64 of zlib": lambda s: b64(zlib.compress(s.encode() * 2)).decode(),
    "base32": lambda s: base64.b32encode(b"ab" + s.encode()).decode(),
    "base85": lambda s: base64.b85encode(b"abc" + s.encode()).decode(),
    "ascii85": lambda s: base64.a85encode(s.encode()).decode(),
    "quoted-printable": lambda s: "".join(f"={b:02X}" for b in s.encode()),
    "JavaScript": lambda s: "".join(f"\\u{{{ord(c):x}}}" for c in s),
    "coloured": lambda s: f"{s[:5]}\x1b[31m{s[5:7]}\x1b[0m{s[7:]}",
    "coloured in JSON": lambda s: json.dumps(f"{s[:5]}\x1b[0;31m{s[5:]}")[1:-1],
    "a link of a terminal": lambda s: f"{s[:5]}\x1b]8;;http://x\x07{s[5:]}",
    "overwritten": lambda s: f"{s[:5]}X\b{s[5:]}",
    "invisible characters": lambda s: f"{s[:3]}\u00ad{s[3:5]}\u202e{s[5:7]}\u200d{s[7:]}",
    "hexadecimal": lambda s: s.encode().hex(),
    "HEXADECIMAL": lambda s: s.encode().hex().upper(),
    "hexadecimal with colons": lambda s: s.encode().hex(":"),
    "hexadecimal with spaces": lambda s: s.encode().hex(" "),
    "bytes as numbers": lambda s: str(list(s.encode())),
    "UTF-7": lambda s: s.encode("utf-7").decode(),
    "uuencoded": lambda s: f"begin 644 a\n{uu(s.encode())}end",
    "uuencoded without a name": lambda s: uu(s.encode()[:45]),
    "letters apart": " ".join,
    "list of letters": lambda s: repr(list(s)),
    "lines with numbers": lambda s: "\n".join(f"{n}: {x}" for n, x in enumerate(s.splitlines())),
    "a diff": lambda s: "\n".join(f"+{line}" for line in s.splitlines()),
    "indented": lambda s: "\n".join(f"    {line}" for line in s.splitlines()),
}


STYLED: dict[str, Callable[[str], str]] = {
    "full-width": lambda s: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in s),
    "bold": lambda s: "".join(chr(ord(c) + 0x1D3B9) if "a" <= c <= "z" else c for c in s),
    "circled": lambda s: "".join(chr(ord(c) + 0x246F) if "a" <= c <= "z" else c for c in s),
}
"""Letters of other alphabets: found in text, not in binary files."""


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


@pytest.mark.parametrize("style", STYLED)
@pytest.mark.parametrize("secret", [PEM, PASSWORD, "hunter2hunter2"], ids=["PEM", "odd", "plain"])
def test_styled_letters_are_read_as_plain_ones(tmp_path: Path, style: str, secret: str) -> None:
    files = {name: make for name, make in FILES.items() if not name.endswith(".bin")}
    for name, make in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(make(STYLED[style](secret)))
    assert redaction.redact_folder(tmp_path, {"KEY": secret}).known.keys() == files.keys()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert STYLED[style](secret).encode() not in path.read_bytes()


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


def _zip_of(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def _png_of(text: str) -> bytes:
    stream = io.BytesIO()
    note = PngImagePlugin.PngInfo()
    note.add_itxt("comment", text, lang="en-us", tkey="title", zip=True)
    Image.new("RGB", (4, 4)).save(stream, "PNG", pnginfo=note)
    return stream.getvalue()


_PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip twice": lambda c: gzip.compress(gzip.compress(c)),
    "second member of gzip": lambda c: gzip.compress(b"x") + gzip.compress(c),
    "zlib": zlib.compress,
    "Zstandard": zstd.compress,
    "Zstandard in a file": lambda c: b"PAR1\x00\xff" + zstd.compress(c) + b"\x00PAR1",
    "old LZMA": lambda c: lzma.compress(c, format=lzma.FORMAT_ALONE),
    "PDF": lambda c: b"%PDF-1.4\n<</Filter/FlateDecode>>stream\n" + zlib.compress(c) + b"\nend",
    "zip in a zip": lambda c: _zip_of("in.zip", _zip_of("a", c)),
    "name in a zip": lambda c: _zip_of(c[-14:].decode(), b"x"),
    "zip after a program": lambda c: b"MZ\x00 program" + _zip_of("a", c),
    "text of a PNG": lambda c: _png_of(c.decode()),
    "PNG in a zip": lambda c: _zip_of("a.png", _png_of(c.decode())),
}


@pytest.mark.parametrize("packed", _PACKED)
def test_packed_secrets_are_found_in_files_and_in_notebooks(tmp_path: Path, packed: str) -> None:
    content = _PACKED[packed](b"x" * 300 + b"hunter2hunter2")
    (tmp_path / "a.bin").write_bytes(content)
    output = {"output_type": "display_data", "data": {"image/png": b64(content).decode() + "\n"}}
    cell = {"cell_type": "code", "source": [], "outputs": [{**output, "metadata": {}}]}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}}))
    found = redaction.redact_folder(tmp_path, {"KEY": "hunter2hunter2"})
    assert found.known == {"a.bin": ["KEY"], "a.ipynb": ["KEY"]}
    assert not (tmp_path / "a.bin").exists()
    assert b64(content).decode()[:40] not in (tmp_path / "a.ipynb").read_text()


def test_a_secret_in_two_outputs_of_a_cell_is_found(tmp_path: Path) -> None:
    """Prints that another output stands between are two outputs of the notebook."""
    texts = ["start hunter2", "a warning", ["hun", "ter2 end"]]
    names = ["stdout", "stderr", "stdout"]
    outputs = [
        {"output_type": "stream", "name": name, "text": text}
        for name, text in zip(names, texts, strict=True)
    ]
    cell = {"cell_type": "code", "source": [], "outputs": outputs}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}}))
    assert redaction.redact_folder(tmp_path, {"KEY": "hunter2hunter2"}).known == {
        "a.ipynb": ["KEY"]
    }
    after = json.loads((tmp_path / "a.ipynb").read_bytes())["cells"][0]["outputs"]
    assert [one["text"] for one in after] == ["start [redacted: KEY] end", "a warning", ""]


def test_a_link_whose_target_is_a_secret_is_removed(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("hunter2hunter2")
    redaction.redact_folder(tmp_path, {"KEY": "hunter2hunter2"})
    assert not os.path.lexists(tmp_path / "latest")


def test_the_bytes_of_a_key_are_found(tmp_path: Path) -> None:
    der = base64.b64decode("".join(PEM.splitlines()[1:-1]) + "=")
    (tmp_path / "key.der").write_bytes(b"\x00\xff" + der)
    assert redaction.redact_folder(tmp_path, {"KEY": PEM}).deleted == {"key.der"}


def test_large_binary_files_take_seconds(tmp_path: Path) -> None:
    """Decoding every byte that happens to look like an escape took minutes."""
    generator = random.Random(0)  # noqa: S311 - not a secret
    (tmp_path / "weights.bin").write_bytes(generator.randbytes(2**19))
    known = {f"KEY{number}": f"{number}-value-of-a-secret" for number in range(6)}
    began = time.process_time()
    assert not redaction.redact_folder(tmp_path, known).known
    assert time.process_time() - began < 8  # 18 s before


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


def test_a_record_is_searched_whatever_time_it_is_given(store: Store) -> None:
    began = time.time_ns()
    ref = store.put(
        Selection(
            dataset="dataset/" + "0" * 64, budget=1, seed=0, method="hunter2hunter2", chosen=()
        )
    )
    for folder in (store.folder(ref), store.folder(ref).parent):
        os.utime(folder, (0, 0))
    (leak,) = redaction.leaks_in_records(store.workspace, began, {"KEY": "hunter2hunter2"})
    assert "the value of secret KEY is in" in leak
    later = time.time_ns() + 10**9
    assert redaction.leaks_in_records(store.workspace, later, {"KEY": "hunter2hunter2"}) == []


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
