"""What a cell does that a production step must not do, read from its syntax."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.checking.notebook import Cell, Magic
from workbench.pipeline.contracts import parameter_types
from workbench.pipeline.steps import secrets

LONGEST_DEFINITION = 20
"""Lines from which a function or class belongs in the package."""

SDKS = {
    "mlflow": "workbench.tracking, or step.metric and step.figure",
    "papermill": "workbench.pipeline",
    "fiftyone": "workbench.curation",
    "label_studio_sdk": "workbench.labeling",
}

_ASKING = {"builtins.input", "input", "getpass.getpass", "builtins.breakpoint", "breakpoint"}
_INSTALLERS = re.compile(
    r"(?x) \b (?: (?:uv\s+)?pip3?\s+install | (?:conda|mamba|micromamba)\s+(?:install|env) "
    r"| uv\s+add | poetry\s+add | apt(?:-get)?\s+install | easy_install )\b"
)
_INSTALL_MAGICS = frozenset({"pip", "conda", "mamba", "micromamba", "uv"})
_HARMLESS_MAGICS = frozenset({"matplotlib", "config", "capture", "time", "timeit", "prun"})
_BYPASSING = {
    "workbench.workspace.find": "own-workspace",
    "workbench.services.up": "starts-servers",
}
_SHELL_CALLS = ("subprocess.", "os.system", "os.popen")
_ROOTS = (
    "Users|Volumes|content|data|datasets|etc|gpfs|home|kaggle|lustre|media|mnt|nfs|opt|root|"
    "scratch|srv|tmp|usr|var|work|workspace"
)
_ABSOLUTE = re.compile(rf"^(?:file://)?(?:/(?:{_ROOTS})(?:/\S*)?|~[\w-]*/\S*|[A-Za-z]:[\\/]\S+)$")


def check(cell: Cell, imports: Mapping[str, str], known: Mapping[str, str]) -> Iterator[Finding]:
    """Findings in one cell.

    Args:
        imports: What names stand for, over the whole notebook.
        known: Secret values by name.
    """
    for leak in secrets.scan(cell.source, known):
        yield _finding("secret", f"looks like a credential: {leak.name}", cell, leak.line)
    for magic in cell.magics:
        yield from _magic(magic, cell)
    if cell.tree is None:
        if cell.error is not None:
            yield _finding("not-python", cell.error[1], cell, cell.error[0])
        return
    for node in ast.walk(cell.tree):
        if isinstance(node, ast.Call):
            yield from _call(node, cell, imports)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from _import(node, cell)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _definition(node, cell)
    for literal in absolute_paths(cell.tree):
        message = f"{literal.value!r} is an absolute path"
        yield _finding("absolute-path", message, cell, literal.lineno)


def absolute_paths(tree: ast.Module) -> Iterator[ast.Constant]:
    """Texts that can only be a place on one machine; what stands in messages is left alone."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if _ABSOLUTE.match(node.value):
            yield node


def imports_of(cells: tuple[Cell, ...]) -> dict[str, str]:
    """Name to dotted origin over the cells that are Python."""
    return parameter_types.imports_in(ast.unparse(cell.tree) for cell in cells if cell.tree)


def origin(node: ast.expr, imports: Mapping[str, str]) -> str:
    """The dotted name of what is called, as far as imports tell: ``subprocess.run``."""
    text = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
    first, dot, rest = text.partition(".")
    return imports.get(first, first) + dot + rest


def _magic(magic: Magic, cell: Cell) -> Iterator[Finding]:
    shell = magic.name in ("!", "bash", "sh", "script", "sx", "system", "cmd")
    if magic.name in _INSTALL_MAGICS or (shell and _INSTALLERS.search(magic.text)):
        shown = f"%{magic.name} {magic.text}" if magic.name in _INSTALL_MAGICS else magic.text
        yield _finding("installs-packages", f"`{shown.strip()}`", cell, magic.line)
    elif shell:
        first = magic.text.strip().splitlines()[0] if magic.text.strip() else magic.name
        yield _finding("shell-command", f"`{first}`", cell, magic.line)
    elif magic.name not in _HARMLESS_MAGICS:
        yield _finding("magic", f"`%{magic.name}`", cell, magic.line)


def _call(node: ast.Call, cell: Cell, imports: Mapping[str, str]) -> Iterator[Finding]:
    called = origin(node.func, imports)
    if called in _BYPASSING:
        shown = called.removeprefix("workbench.")
        yield _finding(_BYPASSING[called], f"`{shown}()`", cell, node.lineno)
    elif called in _ASKING:
        yield _finding("asks-a-person", f"`{called.rpartition('.')[2]}()`", cell, node.lineno)
    elif called.startswith(_SHELL_CALLS):
        words = [
            part.value
            for part in ast.walk(node)
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        if _INSTALLERS.search(" ".join(words)):
            yield _finding("installs-packages", f"`{' '.join(words)}`", cell, node.lineno)
        elif called in ("os.system", "os.popen"):
            yield _finding("shell-command", f"`{called}`", cell, node.lineno)
    elif called in ("pip.main", "ensurepip.bootstrap"):
        yield _finding("installs-packages", f"`{called}`", cell, node.lineno)


def _import(node: ast.Import | ast.ImportFrom, cell: Cell) -> Iterator[Finding]:
    if isinstance(node, ast.ImportFrom):
        named = [node.module or ""]
    else:
        named = [alias.name for alias in node.names]
    for name in named:
        root = name.partition(".")[0]
        if root in SDKS:
            yield _finding("sdk-import", f"imports {name}: use {SDKS[root]}", cell, node.lineno)


def _definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, cell: Cell
) -> Iterator[Finding]:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > LONGEST_DEFINITION:
        message = f"`{node.name}` has {lines} lines"
        yield _finding("long-definition", message, cell, node.lineno)


def _finding(rule: str, message: str, cell: Cell, line: int) -> Finding:
    return Finding(rule, message, cell.number, cell.id, line)


def below(path: str, project: Path) -> str | None:
    """The path relative to the project, None where it lies elsewhere."""
    try:
        return str(Path(path.removeprefix("file://")).expanduser().relative_to(project))
    except (ValueError, RuntimeError):
        return None
