"""Which ``workbench`` modules a notebook can reach by imports, and the digest of their sources.

Imports are read from the syntax tree, so nothing is executed and a module counts exactly when an
import statement leads to it: also one inside a function, or under ``TYPE_CHECKING``, where packages
that import lazily name what they hand out.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from workbench import digest

PACKAGE = "workbench"
ROOT = Path(__file__).resolve().parents[2]

_followed: ContextVar[dict[frozenset[str], dict[str, str]] | None] = ContextVar(
    "followed", default=None
)

NOT_IN_PRODUCTION = frozenset({"workbench.pipeline.steps.by_hand"})
"""Reachable, but never run by the pipeline; a change there cannot change a step's outputs."""


def digest_of(sources: Sequence[str]) -> str:
    """Digest of every workbench module that notebook cells with these sources can import."""
    return digest.of_json(digests(sources))


@contextlib.contextmanager
def looked_at_once() -> Iterator[None]:
    """Within, files are taken not to change: notebooks that import the same are followed once."""
    token = _followed.set({})
    try:
        yield
    finally:
        _followed.reset(token)


def digests(sources: Sequence[str]) -> dict[str, str]:
    """Module name to the digest of its file, for all that ``sources`` can import."""
    known = _followed.get()
    if known is None:
        return _digests(sources)
    imported = frozenset(name for source in sources for name in _imports_of_cell(source))
    if imported not in known:
        known[imported] = _digests(sources)
    return known[imported]


def _digests(sources: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, path in reach(sources).items():
        status = path.stat()
        found[name] = _digest_of_file(path, status.st_mtime_ns, status.st_size)
    return found


@cache
def _digest_of_file(path: Path, _mtime_ns: int, _size: int) -> str:
    return digest.of_file(path)


def reach(sources: Sequence[str]) -> dict[str, Path]:
    """Module name to file for everything reachable from ``sources``."""
    found: dict[str, Path] = {}
    waiting = [name for source in sources for name in _imports_of_cell(source)]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if name in found or path is None or name in NOT_IN_PRODUCTION:
            continue
        found[name] = path
        waiting.extend(_imports_of_file(name, path, path.stat().st_mtime_ns))
    return dict(sorted(found.items()))


@cache
def _imports_of_cell(source: str) -> tuple[str, ...]:
    if "import" not in source:
        return ()
    return tuple(_imported(_parse(source), package=PACKAGE))


@cache
def _imports_of_file(name: str, path: Path, _mtime_ns: int) -> tuple[str, ...]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(_imported(_parse(path.read_text(encoding="utf-8")), package=package))


def _parse(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except SyntaxError:
        # A notebook cell may hold a magic; its plain lines still count.
        kept = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        return ast.parse("\n".join(kept))


def _imported(tree: ast.AST, *, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield from _with_parents(base)
            for alias in node.names:
                yield from _with_parents(f"{base}.{alias.name}")


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    if parts[0] == PACKAGE:
        for length in range(1, len(parts) + 1):
            yield ".".join(parts[:length])


def _file_of(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split(".")[1:])
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None
