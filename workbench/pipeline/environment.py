"""What the installation and the code contribute to a result.

Installed distributions, the class of CPU or GPU, and the digests of the ``workbench`` modules that
a notebook can import. Imports are read from the syntax tree, so nothing is executed and a module
counts exactly when an import statement leads to it: also one inside a function, or under
``TYPE_CHECKING``, where packages that import lazily name what they export.
"""

from __future__ import annotations

import ast
import contextlib
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache, lru_cache
from pathlib import Path

from workbench.core import digest
from workbench.core.exports import PUBLIC_NAMES
from workbench.records.model_types import Environment

__all__ = ()

PACKAGE_ROOT = Path(__file__).resolve().parents[1]

NOT_IN_PRODUCTION = frozenset({"workbench.pipeline.interactive"})
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
    pending = _imports_of_cells(sources)
    while pending:
        name = pending.pop()
        path = _module_file(name)
        if name in found or path is None or name in NOT_IN_PRODUCTION:
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
