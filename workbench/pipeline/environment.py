"""What the installation and the code contribute to a result.

Installed distributions, the class of CPU or GPU, and the digests of the ``workbench`` modules that
a notebook can import. Imports are read from the syntax tree, so nothing is executed and a module
counts exactly when an import statement leads to it: also one inside a function, or under
``TYPE_CHECKING``, where packages that import lazily name what they export.

The digests say what ran, the git state where to find it. That is best effort: a project without
git, or without a commit, runs all the same.
"""

from __future__ import annotations

import ast
import contextlib
import os
import platform
import re
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from workbench.core import digest, secret_scan
from workbench.core.exports import PUBLIC_NAMES
from workbench.records.model_types import Environment

__all__ = ()


PACKAGE_ROOT = Path(__file__).resolve().parents[1]

_NOT_IN_PRODUCTION = frozenset({"workbench.pipeline.interactive"})
"""Imported but never run by a pipeline; a change there cannot change a step's outputs."""

_PACKAGE = "workbench"
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "i8mm")

_digest_cache: ContextVar[dict[frozenset[str], dict[str, str]] | None] = ContextVar(
    "module_digests", default=None
)


@lru_cache(maxsize=1)
def current_environment() -> Environment:
    """The environment of this interpreter, from folder names; nothing is imported."""
    return Environment(
        python=platform.python_version(),
        distributions=tuple(sorted(_installed_distributions())),
        machine=_machine(),
    )


@lru_cache(maxsize=1)
def environment_digest() -> str:
    """Digest of `current_environment`."""
    return digest.of_json(current_environment().model_dump(mode="json"))


@lru_cache(maxsize=1)
def environment_versions() -> dict[str, str]:
    """Versions by name: distributions, Python and properties of the machine."""
    found = current_environment()
    lines = (line.partition("==") for line in found.distributions)
    machine = {key: str(value) for key, value in found.machine.items()}
    return {**{name: version for name, _, version in lines}, "python": found.python, **machine}


def _installed_distributions() -> set[str]:
    """``name==version#build digest`` for each installed distribution except the workbench."""
    found = set()
    # Not sys.path: packages with vendored copies of others add those to it on import.
    for folder in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}:
        for info in folder.glob("*.dist-info"):
            name, _, version = info.name.removesuffix(".dist-info").partition("-")
            if name == "workbench":
                continue  # its modules count one by one, see `module_digests`
            wheel = info / "WHEEL"
            build = digest.of_file(wheel)[:8] if wheel.exists() else "unknown"
            found.add(f"{name.lower()}=={version}#{build}")
    return found


def _machine() -> dict[str, str | list[str]]:
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "features": [flag for flag in _CPU_FLAGS if flag in _cpu_flags()],
        "accelerator": _accelerator(),
    }


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text().splitlines():
        if line.lower().startswith(("flags", "features")):
            return set(line.partition(":")[2].split())
    return set()


def _accelerator() -> str:
    names = Path("/proc/driver/nvidia/gpus")
    if not names.is_dir():
        return "none"
    models = set()
    for card in names.glob("*/information"):
        for line in card.read_text().splitlines():
            if line.startswith("Model:"):
                models.add(line.partition(":")[2].strip())
    return ", ".join(sorted(models)) or "none"


def modules_digest(sources: Sequence[str]) -> str:
    """One digest of all workbench modules that these cells can import."""
    return digest.of_json(module_digests(sources))


@contextlib.contextmanager
def cached_module_digests() -> Iterator[None]:
    """Within this context, files are assumed not to change and equal imports are followed once."""
    token = _digest_cache.set({})
    try:
        yield
    finally:
        _digest_cache.reset(token)


def module_digests(sources: Sequence[str]) -> dict[str, str]:
    """Digests of all workbench modules that these cells can import.

    Args:
        sources: Code cells of a notebook.

    Returns:
        Module name to the digest of its file.
    """
    known = _digest_cache.get()
    if known is None:
        return _compute_module_digests(sources)
    imported = frozenset(_imports_of_cells(sources))
    if imported not in known:
        known[imported] = _compute_module_digests(sources)
    return known[imported]


def _compute_module_digests(sources: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, path in reachable_modules(sources).items():
        status = path.stat()
        found[name] = _file_digest(path, status.st_mtime_ns, status.st_size)
    return found


@cache
def _file_digest(path: Path, _mtime_ns: int, _size: int) -> str:
    return digest.of_file(path)


def reachable_modules(sources: Sequence[str]) -> dict[str, Path]:
    """Module name to file for all workbench modules that these cells can import."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    pending = _imports_of_cells(sources)
    while pending:
        name = pending.pop()
        if name in seen or name in _NOT_IN_PRODUCTION:
            continue
        seen.add(name)
        if (path := _module_file(name)) is None:
            continue
        found[name] = path
        pending.extend(_imports_of_file(name, path, path.stat().st_mtime_ns))
    return dict(sorted(found.items()))


def _imports_of_cells(sources: Sequence[str]) -> list[str]:
    names = [name for source in sources for name in _imports_of_cell(source)]
    if _PACKAGE in names:
        aliases = frozenset(alias for source in sources for alias in _package_aliases(source))
        names += [name for source in sources for name in _public_names_used(source, aliases)]
    return names


@cache
def _imports_of_cell(source: str) -> tuple[str, ...]:
    if "import" not in source:
        return ()
    return tuple(_imported_modules(_parse_source(source), package=_PACKAGE))


@cache
def _package_aliases(source: str) -> tuple[str, ...]:
    """What `workbench` itself is called after ``import workbench as wb``."""
    if "import" not in source:
        return ()
    return tuple(
        alias.asname or _PACKAGE
        for node in ast.walk(_parse_source(source))
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == _PACKAGE
    )


@cache
def _public_names_used(source: str, aliases: frozenset[str]) -> tuple[str, ...]:
    """Modules behind ``wb.NAME``, in whichever cell it is used."""
    if not any(alias in source for alias in aliases):
        return ()
    return tuple(
        name
        for node in ast.walk(_parse_source(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in aliases
        for name in _with_parents(PUBLIC_NAMES.get(node.attr, f"{_PACKAGE}.{node.attr}"))
    )


@cache
def _imports_of_file(name: str, path: Path, _mtime_ns: int) -> tuple[str, ...]:
    if name == _PACKAGE:
        return ()  # its names are imported when they are used, see `_public_names_used`
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(
        _imported_modules(_parse_source(path.read_text(encoding="utf-8")), package=package)
    )


def _parse_source(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except SyntaxError:
        # A notebook cell may contain magics; its other lines still count.
        kept = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        return ast.parse("\n".join(kept))


def _imported_modules(tree: ast.AST, *, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_module(node, package)
            yield from _with_parents(base)
            for alias in node.names:
                yield from _with_parents(f"{base}.{alias.name}")
                if base == _PACKAGE and alias.name in PUBLIC_NAMES:
                    yield from _with_parents(PUBLIC_NAMES[alias.name])


def _absolute_module(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    if parts[0] == _PACKAGE:
        for length in range(1, len(parts) + 1):
            yield ".".join(parts[:length])


def _module_file(name: str) -> Path | None:
    base = PACKAGE_ROOT.joinpath(*name.split(".")[1:])
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


_MAX_DIFF_CHARACTERS = 1_000_000
_MAX_UNTRACKED = 200
_TIMEOUT_S = 30

_FILE_OF_DIFF = re.compile(r"(?m)^(?=diff --git )")
_KEY_LINES = re.compile(r"(?m)(?:^[ +-][ \t]*[A-Za-z0-9+/]{60,80}={0,2}\r?\n){2,}")
"""Lines of a PEM key of which a diff shows only a part."""

# A repository's own settings may name programs to run; reading its state must run none of them.
_SAFE_OPTIONS = (
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.quotePath=false"),
    *("-c", "color.ui=false"),
)


@dataclass(frozen=True)
class GitState:
    """The state of a repository.

    Attributes:
        commit: Empty in a repository without a commit.
        branch: Empty when no branch is checked out.
        diff: Changes since the commit, with credentials redacted.
        untracked: Paths of untracked files.
    """

    commit: str
    branch: str
    diff: str
    untracked: tuple[str, ...]

    @property
    def dirty(self) -> bool:
        return bool(self.diff or self.untracked)

    def tags(self) -> dict[str, str]:
        """Tags for MLflow, which shows the ``mlflow.source`` ones on the run's page."""
        source = {"mlflow.source.git.commit": self.commit, "mlflow.source.git.branch": self.branch}
        return {
            **{name: value for name, value in source.items() if value},
            "workbench.git.dirty": str(self.dirty).lower(),
        }

    def as_patch(self) -> str:
        """The diff in the form that `git apply` takes, below the names of untracked files."""
        untracked = "".join(f"# untracked: {name}\n" for name in self.untracked)
        return f"# changes since {self.commit or 'nothing'}\n{untracked}{self.diff}"


def read_git_state(folder: Path, known_secrets: Mapping[str, str] | None = None) -> GitState | None:
    """The state of the repository around ``folder``; None without git or a repository.

    Args:
        known_secrets: Secret values by name, redacted in the diff beside what looks like one.
    """
    status = run_git(folder, "status", "--porcelain=v1", "-z", "--untracked-files=normal")
    if status is None:
        return None
    untracked = [entry[3:] for entry in status.split("\0") if entry.startswith("?? ")]
    commit = (run_git(folder, "rev-parse", "--verify", "-q", "HEAD") or "").strip()
    branch = (run_git(folder, "symbolic-ref", "--short", "-q", "HEAD") or "").strip()
    diff = ""
    if commit:
        diff = run_git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv") or ""
    # Searched before it is cut: a cut secret would not be recognised.
    diff = _redact_diff(diff[: 2 * _MAX_DIFF_CHARACTERS], known_secrets or {})
    if len(diff) > _MAX_DIFF_CHARACTERS:
        diff = f"{diff[:_MAX_DIFF_CHARACTERS]}\n# cut after {_MAX_DIFF_CHARACTERS:,} characters\n"
    return GitState(commit, branch, diff, tuple(untracked[:_MAX_UNTRACKED]))


def _redact_diff(diff: str, known: Mapping[str, str]) -> str:
    """A diff without credentials, and without the contents of files that hold secrets."""
    parts = []
    for part in _FILE_OF_DIFF.split(diff):
        header, newline, _ = part.partition("\n")
        names = header.removeprefix("diff --git ").replace('"', "").split(" ")
        if any(secret_scan.is_secret_file(name) for name in names):
            parts.append(f"{header}{newline}# contents left out: the file may hold secrets\n")
            continue
        settings = any(secret_scan.is_settings_file(name) for name in names)
        leaks = secret_scan.scan_text(part, known, settings=settings)
        parts.append(_KEY_LINES.sub(_redact_lines, secret_scan.redact(part, leaks)))
    return "".join(parts)


def _redact_lines(lines: re.Match[str]) -> str:
    return re.sub(r"[A-Za-z0-9+/=]{60,}", "[redacted: lines of a key]", lines.group())


def run_git(folder: Path, *arguments: str) -> str | None:
    """Run a git command in ``folder``, without programs that the repository configures.

    Returns:
        Its standard output, None when it fails.
    """
    try:
        done = subprocess.run(
            ["git", *_SAFE_OPTIONS, "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_PAGER": "cat"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
