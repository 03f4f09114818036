"""Checks that need no execution: file format, contract, names, and forbidden calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workbench.core import secret_scan
from workbench.core.errors import ContractError, ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.pipeline import ipynb, parameters
from workbench.pipeline.checking.findings import Finding, sort_findings
from workbench.pipeline.checking.names import check_names
from workbench.pipeline.checking.notebook import (
    KERNELSPEC,
    Cell,
    Magic,
    Notebook,
    assigned_names,
    read_notebook,
)
from workbench.pipeline.contract import Declaration, StepContract, read_contract

__all__ = ()


EXECUTION_METADATA = ("execution", "papermill", "ExecuteTime", "collapsed", "scrolled")
"""Entries that an execution leaves in a cell's metadata."""

EDITOR_METADATA = ("papermill", "widgets", "vscode", "varInspector", "toc", "colab", "interpreter")
"""Entries of one editor or one run in a notebook's metadata."""

_CELL_ID = re.compile(r"^[a-zA-Z0-9-_]{1,64}\Z")
_NEUTRAL_NAMES = ("Python 3", "Python 3 (ipykernel)")

_MAX_DEFINITION_LINES = 20
_SDKS = {
    "mlflow": "workbench.tracking, or step.metric and step.figure",
    "papermill": "workbench.pipeline",
    "fiftyone": "workbench.curation",
    "label_studio_sdk": "workbench.labeling",
}
_INTERACTIVE_CALLS = frozenset(
    {"builtins.input", "input", "getpass.getpass", "builtins.breakpoint", "breakpoint"}
)
_INSTALL_COMMAND = re.compile(
    r"(?x) \b (?: (?:uv\s+)?pip3?\s+install | (?:conda|mamba|micromamba)\s+(?:install|env) "
    r"| uv\s+add | poetry\s+add | apt(?:-get)?\s+install | easy_install )\b"
)
_INSTALL_MAGICS = frozenset({"pip", "conda", "mamba", "micromamba", "uv"})
_SHELL_MAGICS = frozenset({"!", "bash", "sh", "script", "sx", "system", "cmd"})
_HARMLESS_MAGICS = frozenset({"matplotlib", "config", "capture", "time", "timeit", "prun"})
_FORBIDDEN_CALLS = {
    "workbench.open": "own-workspace",
    "workbench.core.workspace.find_workspace": "own-workspace",
    "workbench.services.up": "starts-servers",
}
_SHELL_CALLS = ("subprocess.", "os.system", "os.popen")
_ROOT_FOLDERS = (
    "Users|Volumes|content|data|datasets|etc|gpfs|home|kaggle|lustre|media|mnt|nfs|opt|root|"
    "scratch|srv|tmp|usr|var|work|workspace"
)
_ABSOLUTE_PATH = re.compile(
    rf"^(?:file://)?(?:/(?:{_ROOT_FOLDERS})(?:/\S*)?|~[\w-]*/\S*|[A-Za-z]:[\\/]\S+)$"
)
_STEP_METHODS = {
    "input": "input",
    "optional_input": "input",
    "input_list": "input",
    "load": "input",
    "output": "output",
    "save": "output",
    "secret": "secret",
}


def run_static_checks(path: Path, known_secrets: Mapping[str, str] | None = None) -> list[Finding]:
    """Findings of every rule that needs no execution, in the order of cells.

    Args:
        known_secrets: Secret values by name, searched for in every encoding.

    Raises:
        ContractError: The file is not a notebook.
    """
    known = known_secrets or {}
    notebook = read_notebook(path)
    imports = notebook_imports(notebook.cells)
    findings = [
        *_check_format(notebook),
        *_check_contract(notebook, imports),
        *check_names(notebook.cells),
        *_check_markdown(notebook, known),
    ]
    for cell in notebook.cells:
        findings.extend(_check_cell(cell, imports, known))
    return sort_findings(findings)


def _check_markdown(notebook: Notebook, known: Mapping[str, str]) -> Iterator[Finding]:
    """Credentials in cells that are not code."""
    for raw in notebook.content["cells"]:
        if raw["cell_type"] != "code":
            for leak in secret_scan.scan_text(ipynb.cell_source(raw), known):
                message = f"possible credential in a {raw['cell_type']} cell: {leak.name}"
                yield Finding("secret", message, None, ipynb.cell_id(raw), leak.line)


# The file: format, ids, kernelspec, and what an execution left in it.


def _check_format(notebook: Notebook) -> Iterator[Finding]:
    content = notebook.content
    if content.get("nbformat") != 4 or content.get("nbformat_minor", 0) < 5:
        version = f"{content.get('nbformat')}.{content.get('nbformat_minor')}"
        yield Finding("notebook-form", f"notebook format {version}; expected 4.5 or a later 4.x")
    yield from _check_cell_ids(content["cells"])
    yield from _check_kernelspec(content["metadata"])
    yield from _check_no_outputs(notebook)


def is_cell_id(value: object) -> bool:
    """Whether ``value`` is a cell id by nbformat 4.5."""
    return isinstance(value, str) and bool(_CELL_ID.match(value))


def is_neutral_kernelspec(kernel: object) -> bool:
    """Whether a kernelspec names the kernel that every machine has."""
    if not isinstance(kernel, dict) or kernel.get("name") != KERNELSPEC["name"]:
        return False
    return kernel.get("display_name") in _NEUTRAL_NAMES


def _check_cell_ids(cells: list[Json]) -> Iterator[Finding]:
    seen: set[str] = set()
    code_cells = 0
    for position, raw in enumerate(cells, 1):
        is_code = raw["cell_type"] == "code"
        code_cells += is_code
        number = code_cells if is_code else None
        name = raw.get("id")
        subject = "the cell" if is_code else f"the {raw['cell_type']} cell at position {position}"
        if not is_cell_id(name):
            yield Finding("cell-id", f"{subject} has no valid id", number)
        elif name in seen:
            yield Finding(
                "cell-id", f"{subject} has the id of another cell: {name!r}", number, name
            )
        seen.add(str(name))


def _check_kernelspec(metadata: Json) -> Iterator[Finding]:
    kernel = metadata.get("kernelspec")
    if not is_neutral_kernelspec(kernel):
        name = f"kernel {kernel.get('name')!r}" if isinstance(kernel, dict) else "no kernelspec"
        yield Finding("kernelspec", name)
    extra = [name for name in EDITOR_METADATA if name in metadata]
    if extra:
        yield Finding("kernelspec", f"metadata of one editor or run: {', '.join(extra)}")


def _check_no_outputs(notebook: Notebook) -> Iterator[Finding]:
    counts = []
    for cell in notebook.cells:
        count = cell.raw.get("execution_count")
        if count is not None:
            counts.append(count)
        outputs = cell.raw.get("outputs", [])
        extra = [name for name in EXECUTION_METADATA if name in cell.raw.get("metadata", {})]
        if outputs or count is not None or extra:
            message = counted(len(outputs), "output")
            if count is not None:
                message += f", execution count {count}"
            yield Finding("outputs-committed", message, cell.number, cell.id)
    if counts != sorted(counts):
        order = ", ".join(str(count) for count in counts)
        yield Finding("ran-out-of-order", f"execution order of the cells: {order}")


# The code of one cell.


def notebook_imports(cells: tuple[Cell, ...]) -> dict[str, str]:
    """Imported name to dotted origin, over all cells that are Python."""
    return parameters.imports_of_cells(ast.unparse(cell.tree) for cell in cells if cell.tree)


def absolute_paths(tree: ast.Module) -> Iterator[ast.Constant]:
    """String literals that can only be a path on one machine."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _ABSOLUTE_PATH.match(node.value)
        ):
            yield node


def _check_cell(
    cell: Cell, imports: Mapping[str, str], known_secrets: Mapping[str, str]
) -> Iterator[Finding]:
    for leak in secret_scan.scan_text(cell.source, known_secrets):
        yield _cell_finding("secret", f"possible credential: {leak.name}", cell, leak.line)
    for magic in cell.magics:
        yield from _check_magic(magic, cell)
    if cell.tree is None:
        if cell.error is not None:
            yield _cell_finding("not-python", cell.error[1], cell, cell.error[0])
        return
    for node in ast.walk(cell.tree):
        if isinstance(node, ast.Call):
            yield from _check_call(node, cell, imports)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from _check_import(node, cell)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > _MAX_DEFINITION_LINES:
                message = f"`{node.name}` has {lines} lines; the limit is {_MAX_DEFINITION_LINES}"
                yield _cell_finding("long-definition", message, cell, node.lineno)
    for literal in absolute_paths(cell.tree):
        message = f"absolute path {literal.value!r}"
        yield _cell_finding("absolute-path", message, cell, literal.lineno)


def _check_magic(magic: Magic, cell: Cell) -> Iterator[Finding]:
    is_shell = magic.name in _SHELL_MAGICS
    text = magic.text.strip()
    if magic.name in _INSTALL_MAGICS:
        yield _cell_finding("installs-packages", f"`%{magic.name} {text}`", cell, magic.line)
    elif is_shell and _INSTALL_COMMAND.search(text):
        yield _cell_finding("installs-packages", f"`{text}`", cell, magic.line)
    elif is_shell:
        first_line = text.splitlines()[0] if text else magic.name
        yield _cell_finding("shell-command", f"`{first_line}`", cell, magic.line)
    elif magic.name not in _HARMLESS_MAGICS:
        yield _cell_finding("magic", f"`%{magic.name}`", cell, magic.line)


def _check_call(node: ast.Call, cell: Cell, imports: Mapping[str, str]) -> Iterator[Finding]:
    name = _dotted_name(node.func, imports)
    if name in _FORBIDDEN_CALLS:
        message = f"`{name.removeprefix('workbench.')}()`"
        yield _cell_finding(_FORBIDDEN_CALLS[name], message, cell, node.lineno)
    elif name in _INTERACTIVE_CALLS:
        yield _cell_finding("asks-a-person", f"`{name.rpartition('.')[2]}()`", cell, node.lineno)
    elif name.startswith(_SHELL_CALLS):
        words = [
            part.value
            for part in ast.walk(node)
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        if _INSTALL_COMMAND.search(" ".join(words)):
            yield _cell_finding("installs-packages", f"`{' '.join(words)}`", cell, node.lineno)
        elif name in ("os.system", "os.popen"):
            yield _cell_finding("shell-command", f"`{name}`", cell, node.lineno)
    elif name in ("pip.main", "ensurepip.bootstrap"):
        yield _cell_finding("installs-packages", f"`{name}`", cell, node.lineno)


def _check_import(node: ast.Import | ast.ImportFrom, cell: Cell) -> Iterator[Finding]:
    if isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
    else:
        modules = [alias.name for alias in node.names]
    for module in modules:
        wrapper = _SDKS.get(module.partition(".")[0])
        if wrapper:
            message = f"import of {module}; use {wrapper}"
            yield _cell_finding("sdk-import", message, cell, node.lineno)


def _dotted_name(node: ast.expr, imports: Mapping[str, str]) -> str:
    """The full name of a called function as far as the imports tell, like ``subprocess.run``."""
    text = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
    first, dot, rest = text.partition(".")
    return imports.get(first, first) + dot + rest


def _cell_finding(rule: str, message: str, cell: Cell, line: int) -> Finding:
    return Finding(rule, message, cell.number, cell.id, line)


# The contract against the code.


@dataclass
class _StepUsage:
    """How a notebook uses its ``step`` object.

    Attributes:
        names: For input, output and secret, each literal name with the first place that uses it.
        computed: The kinds for which some name is not a literal.
        variable: The name of the step object, None when there is none.
    """

    names: dict[str, dict[str, tuple[Cell, int]]] = field(
        default_factory=lambda: {"input": {}, "output": {}, "secret": {}}
    )
    computed: set[str] = field(default_factory=set)
    variable: str | None = None


def find_step_usage(notebook: Notebook, imports: Mapping[str, str]) -> _StepUsage:
    """Where the notebook gets its step object, and which inputs, outputs and secrets it uses."""
    usage = _StepUsage()
    for cell in notebook.cells:
        for node in ast.walk(cell.tree) if cell.tree else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                target = node.targets[0]
                is_step = _dotted_name(node.value.func, imports) == "workbench.step"
                if is_step and isinstance(target, ast.Name):
                    usage.variable = target.id
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                _record_use(node, node.func, cell, usage)
    return usage


def _record_use(node: ast.Call, method: ast.Attribute, cell: Cell, usage: _StepUsage) -> None:
    kind = _STEP_METHODS.get(method.attr)
    if kind is None or not isinstance(method.value, ast.Name):
        return
    if method.value.id != usage.variable or not (node.args or node.keywords):
        return
    first = node.args[0] if node.args else node.keywords[0].value
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        usage.names[kind].setdefault(first.value, (cell, node.lineno))
    else:
        usage.computed.add(kind)


def _check_contract(notebook: Notebook, imports: Mapping[str, str]) -> Iterator[Finding]:
    """Contract and parameters; a notebook without a readable contract gets the reason."""
    yield from _check_parameters(notebook)
    is_declared = notebook.content["metadata"].get("workbench") is not None
    if not is_declared:
        yield Finding("contract", "the notebook declares no contract")
    usage = find_step_usage(notebook, imports)
    if usage.variable is None:
        yield Finding("no-step", "no cell calls workbench.step()")
    try:
        contract = read_contract(notebook.path)
    except (ContractError, ParameterError) as error:
        about_parameters = "parameter" in str(error)
        if not about_parameters:
            yield Finding("contract", error.what)
        elif len(notebook.parameters) == 1:
            yield _parameters_finding(notebook.parameters[0], error)
        return
    if is_declared:
        yield from _check_fixture(contract)
        yield from _check_declarations(contract.declaration, usage)


def _parameters_finding(cell: Cell, error: ContractError | ParameterError) -> Finding:
    """A finding at the line that the error names, if it names one."""
    _, marker, line = str(error.where or "").rpartition("line ")
    at = int(line) if marker and line.isdecimal() else None
    return Finding("parameters-cell", error.what, cell.number, cell.id, at)


def _check_parameters(notebook: Notebook) -> Iterator[Finding]:
    if len(notebook.parameters) != 1:
        numbers = ", ".join(str(cell.number) for cell in notebook.parameters)
        which = f"cells {numbers} are" if numbers else "no cell is"
        yield Finding("parameters-cell", f"{which} tagged `parameters`; expected one cell")
        return
    (cell,) = notebook.parameters
    names = assigned_names(cell)
    read = {
        node.id
        for other in notebook.cells
        if other.tree
        for node in ast.walk(other.tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for name, line in names.items():
        if name not in read:
            message = f"parameter `{name}` is never read"
            yield _cell_finding("parameter-unused", message, cell, line)
    for other in notebook.cells:
        if other.number > cell.number:
            for name, line in assigned_names(other).items():
                if name in names:
                    message = f"parameter `{name}` is assigned another value"
                    yield _cell_finding("parameter-reassigned", message, other, line)


def _check_fixture(contract: StepContract) -> Iterator[Finding]:
    fixture, declaration = contract.declaration.fixture, contract.declaration
    for name, values in (("parameters", fixture.parameters), ("other", fixture.other)):
        try:
            contract.validate({**fixture.parameters, **values})
        except ParameterError as error:
            yield Finding("fixture", f"fixture.{name}: {error.what}")
    for name in fixture.inputs:
        if name not in declaration.inputs:
            yield Finding("fixture", f"fixture.inputs: input {name!r} is not declared")
    for name, declared in declaration.inputs.items():
        if not declared.optional and name not in fixture.inputs:
            yield Finding("fixture", f"fixture.inputs: input {name!r} is missing")
    if contract.parameters.model_fields and not fixture.other:
        yield Finding("no-other-fixture", "the fixture has no `other` parameters")
    if not declaration.outputs:
        yield Finding("no-outputs", "the contract declares no output")
    if not declaration.owner:
        yield Finding("no-owner", "the contract names no owner")


def _check_declarations(declaration: Declaration, usage: _StepUsage) -> Iterator[Finding]:
    declared = {
        "input": set(declaration.inputs),
        "output": set(declaration.outputs),
        "secret": set(declaration.secrets),
    }
    for kind, known in declared.items():
        used = usage.names[kind]
        for name, (cell, line) in used.items():
            if name not in known:
                message = f"{kind} {name!r} is not declared"
                yield _cell_finding(f"undeclared-{kind}", message, cell, line)
        if kind in usage.computed:
            continue  # the names are known only at run time
        word = "missing" if kind == "output" else "unused"
        for name in sorted(known - set(used)):
            yield Finding(f"{word}-{kind}", f"{kind} {name!r} is declared but never used")
