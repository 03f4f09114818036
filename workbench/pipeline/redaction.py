"""Redact a step's files before anything else reads them.

A secret that a cell prints, or that is part of an error, would otherwise stay in the executed
notebook and go to MLflow. Notebooks and JSON are searched string by string, with the lines of a
text joined; other text is searched as it is, and binary files in their bytes. A file that cannot
be rewritten is deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core import secret_scan
from workbench.core.credentials import PUBLIC_KEY_SUFFIX
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic

__all__ = ()

_MAX_FILE_BYTES = 64 * 2**20
"""A larger file is searched for the values as they are, in their bytes; in records it is not."""

_MAX_UNPACKED_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**24
_CLOCK_NS = 20_000_000
"""Times of files lag behind the clock by a tick."""


@dataclass
class Redaction:
    """What was found in a step's files.

    Attributes:
        known: Names of secrets by file. A step that left one fails.
        guessed: Kinds of what looks like a credential, by file; redacted as well.
        deleted: Files that could not be rewritten.
    """

    known: dict[str, list[str]] = field(default_factory=dict)
    guessed: dict[str, list[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def message(self) -> str:
        """What was found in the first file, for the step's failure."""
        file, names = next(iter(self.known.items()))
        done = "the file was deleted" if file in self.deleted else "it was redacted"
        more = f" (and in {len(self.known) - 1} more)" if len(self.known) > 1 else ""
        return f"the value of secret {', '.join(names)} was in {file}{more}; {done}"


def known_secrets(
    workspace: Workspace, names: Iterable[str] = (), project: Path | None = None
) -> dict[str, str]:
    """Secret values by name: of the workspace, the environment and the project's ``.env`` files.

    Args:
        workspace: Its ``secrets`` folder holds passwords of servers and the signing key.
        names: Environment variables that the step may read.
        project: Folder of the ``.env`` files.
    """
    found = secret_scan.known_in_dotenv(project) if project else {}
    found |= secret_scan.known_in_environment()
    found |= {name: os.environ[name] for name in names if os.environ.get(name)}
    if workspace.secrets.is_dir():
        for path in workspace.secrets.rglob("*"):
            if path.is_file() and not path.name.endswith(PUBLIC_KEY_SUFFIX):
                found[path.name] = path.read_text(encoding="utf-8", errors="replace").strip()
    return found


def redact_folder(folder: Path, known: Mapping[str, str]) -> Redaction:
    """Redact known values, and what looks like a credential, in all files below a step's folder.

    Links that leave the folder, and what is neither file nor folder, are deleted: whoever sends the
    folder on would follow them.

    Args:
        folder: The step's folder.
        known: Secret values by name.
    """
    found = Redaction()
    for path in sorted(_walk(folder), key=lambda path: -len(path.parts)):  # names of folders last
        name = _shown(path.relative_to(folder).as_posix(), known)
        try:
            _redact_path(path, folder, name, known, found)
        except OSError as error:
            _delete(path)
            found.known.setdefault(name, []).append(f"? (could not be read: {error.strerror})")
            found.deleted.add(name)
    return found


def leaks_in_records(workspace: Workspace, since_ns: int, known: Mapping[str, str]) -> list[str]:
    """Secrets in records written since a time, as sentences; the records are left as they are."""
    sentences = []
    for folder in _new_folders(workspace.records, since_ns):
        for path in sorted(_walk(folder)):
            if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
                continue
            if names := secret_scan.names_in_bytes(path.read_bytes(), known):
                sentences.append(f"the value of secret {', '.join(sorted(names))} is in {path}")
    return sentences


def _new_folders(records: Path, since_ns: int) -> Iterator[Path]:
    """Folders of records that were made since a time; no program can set this time of a file."""
    for kind in records.iterdir() if records.is_dir() else ():
        if kind.is_dir() and kind.stat().st_ctime_ns >= since_ns - _CLOCK_NS:
            for folder in kind.iterdir():
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    if folder.stat().st_ctime_ns >= since_ns - _CLOCK_NS:
                        yield folder


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (Path(root) / name for name in (*folders, *files))


def _shown(name: str, known: Mapping[str, str]) -> str:
    text = name.encode("utf-8", "replace").decode()
    return secret_scan.redact(text, secret_scan.scan_known(text, known))


def _redact_path(
    path: Path, folder: Path, name: str, known: Mapping[str, str], found: Redaction
) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        leaves = not path.resolve().is_relative_to(folder.resolve())
        if leaves or secret_scan.scan_known(str(path.readlink()), known):
            path.unlink()
            return
    elif stat.S_ISREG(mode):
        _redact_file(path, name, known, found)
    elif not stat.S_ISDIR(mode):
        path.unlink()
        return
    if path.exists() and (leaks := secret_scan.scan_known(path.name, known)):
        found.known.setdefault(name, []).extend(leak.name for leak in leaks)
        clean = secret_scan.redact(path.name, leaks).replace("/", "_")
        path.rename(path.with_name(clean))


def _redact_file(path: Path, name: str, known: Mapping[str, str], found: Redaction) -> None:
    if path.stat().st_size > _MAX_FILE_BYTES:
        names = _names_in_file(path, known)
        rewritten = None
    else:
        content = path.read_bytes()
        search = _Search(known, guess=True)
        rewritten = _redacted(path.suffix, content, search)
        names = search.known
        if search.guessed:
            found.guessed[name] = sorted(search.guessed)
        if rewritten is not None and rewritten != content:  # what is left must hold nothing
            again = _Search(known, guess=False)
            _redacted(path.suffix, rewritten, again)
            rewritten = None if again.known else rewritten
    if names:
        found.known.setdefault(name, []).extend(sorted(names))
    if rewritten is not None:
        if rewritten != content:
            write_atomic(path, rewritten)
    elif names:
        found.deleted.add(name)
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass
class _Search:
    """A search of one file; collects the names of what it finds."""

    secrets: Mapping[str, str]
    guess: bool
    known: set[str] = field(default_factory=set)
    guessed: set[str] = field(default_factory=set)

    def clean(self, text: str, *, guess: bool = True) -> str:
        """``text`` without what was found in it."""
        if self.guess and guess:
            leaks = secret_scan.scan_text(text, self.secrets)
        else:
            leaks = secret_scan.scan_known(text, self.secrets)
        self.known |= {leak.name for leak in leaks if leak.known}
        self.guessed |= {leak.name for leak in leaks if not leak.known}
        return secret_scan.redact(text, leaks) if leaks else text


def _redacted(suffix: str, content: bytes, search: _Search) -> bytes | None:
    """The content without credentials; None if it holds one and cannot be rewritten."""
    text, encoding = _decode(content)
    if encoding is None:
        search.known |= secret_scan.names_in_bytes(content, search.secrets)
        return None if search.known else content
    if suffix == ".ipynb":
        text = _with_whole_streams(text, search)
    clean = search.clean(text)
    if clean == content.decode(encoding):
        return content
    if suffix in (".ipynb", ".json"):
        clean = search.clean(_redacted_json(text, search))
    elif suffix == ".jsonl":
        lines = (_redacted_json(line, search, indent=None) for line in text.split("\n"))
        clean = search.clean("\n".join(lines))
    return clean.encode(encoding, "surrogatepass")


def _decode(content: bytes) -> tuple[str, str | None]:
    """Text and its encoding; of a binary file, characters 0 to 255 and None."""
    marks = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    encoding = next((name for mark, name in marks if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return content.decode("latin-1"), None
    return (content.decode("latin-1"), None) if "\0" in text else (text, encoding)


def _redacted_json(text: str, search: _Search, *, indent: int | None = 1) -> str:
    """The JSON without credentials; what is not JSON, or has a name twice, is left as it is."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        clean = _clean_json(value, search)
        return text if clean == value else json.dumps(clean, indent=indent, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _with_whole_streams(text: str, search: _Search) -> str:
    """The notebook; a secret that two outputs of a cell hold together is redacted in the first."""
    try:
        notebook = json.loads(text)
        cells = [cell for cell in notebook["cells"] if len(cell.get("outputs", ())) > 1]
        changed = False
        for cell in cells:
            for name in ("stdout", "stderr"):
                streams = [one for one in cell["outputs"] if one.get("name") == name]
                parts = ["".join(one["text"]) for one in streams]
                whole = search.clean("".join(parts))
                if len(parts) > 1 and whole != "".join(search.clean(part) for part in parts):
                    changed = True
                    for number, one in enumerate(streams):
                        one["text"] = "" if number else whole
        return json.dumps(notebook, indent=1, ensure_ascii=False) if changed else text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return text  # not a notebook


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _clean_json(value: Any, search: _Search, *, guess: bool = True) -> Any:
    if isinstance(value, str):
        return search.clean(value, guess=guess)
    if isinstance(value, dict):
        return {
            search.clean(key): _clean_json(inner, search, guess=not key.startswith("image/"))
            for key, inner in value.items()
        }
    if isinstance(value, list):
        if value and all(isinstance(line, str) for line in value):  # the lines of one text
            text = "".join(value)
            clean = search.clean(text, guess=guess)
            value = value if clean == text else clean.splitlines(keepends=True)
        return [_clean_json(inner, search, guess=guess) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        hidden = str(value) in {secret.strip() for secret in search.secrets.values()}
        return search.clean(str(value)) if hidden else value
    return value


def _names_in_file(path: Path, known: Mapping[str, str]) -> set[str]:
    """Secrets whose values stand in a file of any size, as they are or as JSON."""
    needles = {
        (spelling.encode(), name)
        for name, value in known.items()
        for spelling in (value, json.dumps(value)[1:-1])
        if len(value) >= 4
    }
    found: set[str] = set()
    overlap = max((len(needle) for needle, _ in needles), default=0)
    with path.open("rb") as stream:
        tail = b""
        while chunk := stream.read(_CHUNK_BYTES):
            window = tail + chunk
            found |= {name for needle, name in needles if needle in window}
            tail = window[-overlap:]
    return found
