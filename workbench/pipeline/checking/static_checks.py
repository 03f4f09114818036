"""Checks that need no execution: file format, contract, names, and forbidden calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import ContractError, ParameterError
from workbench.pipeline import contract as contracts
from workbench.pipeline import ipynb, parameters, secret_scan
from workbench.pipeline.checking import names, notebook
from workbench.pipeline.checking import notebook as scopes
from workbench.pipeline.checking.findings import Finding, sort_findings
from workbench.pipeline.checking.notebook import Cell, Magic, Notebook
from workbench.pipeline.contract import Declaration, StepContract

Json = dict[str, Any]

NEUTRAL_KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
EXECUTION_METADATA = ("execution", "papermill", "ExecuteTime", "collapsed", "scrolled")
EDITOR_METADATA = ("papermill", "widgets", "vscode", "varInspector", "toc", "colab", "interpreter")

_CELL_ID = re.compile(r"^[a-zA-Z0-9-_]{1,64}$")
_NEUTRAL_NAMES = ("Python 3", "Python 3 (ipykernel)")


def check_format(notebook: Notebook) -> Iterator[Finding]:
    content = notebook.content
    if content.get("nbformat") != 4 or content.get("nbformat_minor", 0) < 5:
        found = f"format {content.get('nbformat')}.{content.get('nbformat_minor')}"
        yield Finding("notebook-form", f"{found}, not 4.5 or a later 4")
    yield from _check_cell_ids(content["cells"])
    yield from _check_kernelspec(content["metadata"])
    yield from _check_no_outputs(notebook)


def is_cell_id(value: object) -> bool:
    return isinstance(value, str) and bool(_CELL_ID.match(value))


def is_neutral_kernelspec(kernel: object) -> bool:
    """Whether a kernelspec is one that every machine has."""
    if not isinstance(kernel, dict) or kernel.get("name") != NEUTRAL_KERNELSPEC["name"]:
        return False
    return kernel.get("display_name") in _NEUTRAL_NAMES


def _check_cell_ids(cells: list[Json]) -> Iterator[Finding]:
    seen: set[str] = set()
    number = 0
    for place, raw in enumerate(cells, 1):
        is_code = raw["cell_type"] == "code"
        number += is_code
        at = number if is_code else None
        name = raw.get("id")
        said = "the cell" if is_code else f"the {raw['cell_type']} cell at place {place}"
        if not is_cell_id(name):
            yield Finding("cell-id", f"{said} has no valid id", at)
        elif name in seen:
            yield Finding("cell-id", f"{said} has the id {name!r} of another one", at, name)
        seen.add(str(name))


def _check_kernelspec(metadata: Json) -> Iterator[Finding]:
    kernel = metadata.get("kernelspec")
    if not is_neutral_kernelspec(kernel):
        found = f"kernel {kernel.get('name')!r}" if isinstance(kernel, dict) else "no kernelspec"
        yield Finding("kernelspec", found)
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
        left = [name for name in EXECUTION_METADATA if name in cell.raw.get("metadata", {})]
        if outputs or count is not None or left:
            many = f"{len(outputs)} outputs" if len(outputs) != 1 else "1 output"
            ran = "" if count is None else f", execution count {count}"
            yield Finding("outputs-committed", many + ran, cell.number, cell.id)
    if counts != sorted(counts):
        shown = ", ".join(str(count) for count in counts)
        yield Finding("ran-out-of-order", f"cells were run in the order {shown}")


# ---- What a cell does that a production step must not do, read from its syntax.


_MAX_DEFINITION_LINES = 20
"""Lines from which a function or class belongs in the package."""

_SDKS = {
    "mlflow": "workbench.tracking, or step.metric and step.figure",
    "papermill": "workbench.pipeline",
    "fiftyone": "workbench.curation",
    "label_studio_sdk": "workbench.labeling",
}

_INTERACTIVE_CALLS = {
    "builtins.input",
    "input",
    "getpass.getpass",
    "builtins.breakpoint",
    "breakpoint",
}
_INSTALL_COMMAND = re.compile(
    r"(?x) \b (?: (?:uv\s+)?pip3?\s+install | (?:conda|mamba|micromamba)\s+(?:install|env) "
    r"| uv\s+add | poetry\s+add | apt(?:-get)?\s+install | easy_install )\b"
)
_INSTALL_MAGICS = frozenset({"pip", "conda", "mamba", "micromamba", "uv"})
_HARMLESS_MAGICS = frozenset({"matplotlib", "config", "capture", "time", "timeit", "prun"})
_FORBIDDEN_CALLS = {
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


def check_cell(
    cell: Cell, imports: Mapping[str, str], known: Mapping[str, str]
) -> Iterator[Finding]:
    """Findings in one cell.

    Args:
        imports: What names stand for, over the whole notebook.
        known: Secret values by name.
    """
    for leak in secret_scan.scan_text(cell.source, known):
        yield _cell_finding("secret", f"looks like a credential: {leak.name}", cell, leak.line)
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
            yield from _check_definition(node, cell)
    for literal in absolute_paths(cell.tree):
        message = f"{literal.value!r} is an absolute path"
        yield _cell_finding("absolute-path", message, cell, literal.lineno)


def absolute_paths(tree: ast.Module) -> Iterator[ast.Constant]:
    """Texts that can only be a place on one machine; what stands in messages is left alone."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if _ABSOLUTE_PATH.match(node.value):
            yield node


def notebook_imports(cells: tuple[Cell, ...]) -> dict[str, str]:
    """Name to dotted origin over the cells that are Python."""
    return parameters.imports_of_cells(ast.unparse(cell.tree) for cell in cells if cell.tree)


def _dotted_name(node: ast.expr, imports: Mapping[str, str]) -> str:
    """The dotted name of what is called, as far as imports tell: ``subprocess.run``."""
    text = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
    first, dot, rest = text.partition(".")
    return imports.get(first, first) + dot + rest


def _check_magic(magic: Magic, cell: Cell) -> Iterator[Finding]:
    shell = magic.name in ("!", "bash", "sh", "script", "sx", "system", "cmd")
    if magic.name in _INSTALL_MAGICS or (shell and _INSTALL_COMMAND.search(magic.text)):
        shown = f"%{magic.name} {magic.text}" if magic.name in _INSTALL_MAGICS else magic.text
        yield _cell_finding("installs-packages", f"`{shown.strip()}`", cell, magic.line)
    elif shell:
        first = magic.text.strip().splitlines()[0] if magic.text.strip() else magic.name
        yield _cell_finding("shell-command", f"`{first}`", cell, magic.line)
    elif magic.name not in _HARMLESS_MAGICS:
        yield _cell_finding("magic", f"`%{magic.name}`", cell, magic.line)


def _check_call(node: ast.Call, cell: Cell, imports: Mapping[str, str]) -> Iterator[Finding]:
    called = _dotted_name(node.func, imports)
    if called in _FORBIDDEN_CALLS:
        shown = called.removeprefix("workbench.")
        yield _cell_finding(_FORBIDDEN_CALLS[called], f"`{shown}()`", cell, node.lineno)
    elif called in _INTERACTIVE_CALLS:
        yield _cell_finding("asks-a-person", f"`{called.rpartition('.')[2]}()`", cell, node.lineno)
    elif called.startswith(_SHELL_CALLS):
        words = [
            part.value
            for part in ast.walk(node)
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        if _INSTALL_COMMAND.search(" ".join(words)):
            yield _cell_finding("installs-packages", f"`{' '.join(words)}`", cell, node.lineno)
        elif called in ("os.system", "os.popen"):
            yield _cell_finding("shell-command", f"`{called}`", cell, node.lineno)
    elif called in ("pip.main", "ensurepip.bootstrap"):
        yield _cell_finding("installs-packages", f"`{called}`", cell, node.lineno)


def _check_import(node: ast.Import | ast.ImportFrom, cell: Cell) -> Iterator[Finding]:
    if isinstance(node, ast.ImportFrom):
        named = [node.module or ""]
    else:
        named = [alias.name for alias in node.names]
    for name in named:
        root = name.partition(".")[0]
        if root in _SDKS:
            yield _cell_finding(
                "sdk-import", f"imports {name}: use {_SDKS[root]}", cell, node.lineno
            )


def _check_definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, cell: Cell
) -> Iterator[Finding]:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > _MAX_DEFINITION_LINES:
        message = f"`{node.name}` has {lines} lines"
        yield _cell_finding("long-definition", message, cell, node.lineno)


def _cell_finding(rule: str, message: str, cell: Cell, line: int) -> Finding:
    return Finding(rule, message, cell.number, cell.id, line)


def path_below(path: str, project: Path) -> str | None:
    """The path relative to the project, None where it lies elsewhere."""
    try:
        return str(Path(path.removeprefix("file://")).expanduser().relative_to(project))
    except (ValueError, RuntimeError):
        return None


# ---- The contract against the code: what is declared and not used, and used and not declared.


_STEP_METHODS = {
    "input": "input",
    "optional_input": "input",
    "input_list": "input",
    "output": "output",
    "secret": "secret",
}


@dataclass
class StepUsage:
    """Names given to ``step.input`` and its like, with where.

    ``computed`` holds the kinds for which some name is no literal.
    """

    named: dict[str, dict[str, tuple[Cell, int]]] = field(
        default_factory=lambda: {"input": {}, "output": {}, "secret": {}}
    )
    computed: set[str] = field(default_factory=set)
    step: str | None = None


def check_contract(notebook: Notebook, imports: Mapping[str, str]) -> Iterator[Finding]:
    """Contract and parameters; a notebook without a readable contract gets the reason."""
    yield from _check_parameters(notebook)
    declaration = notebook.content["metadata"].get("workbench")
    if declaration is None:
        yield Finding("contract", "the notebook declares no contract")
    used = find_step_usage(notebook, imports)
    if used.step is None:
        yield Finding("no-step", "no cell calls workbench.step()")
    try:
        contract = contracts.read_contract(notebook.path)
    except (ContractError, ParameterError) as error:
        at_parameters = "parameter" in str(error)
        if len(notebook.parameters) == 1 or not at_parameters:
            rule = "parameters-cell" if at_parameters else "contract"
            yield _contract_error(notebook, rule, error)
        return
    if declaration is not None:
        yield from _check_fixture(contract)
        yield from _check_declarations(contract.declaration, used)


def find_step_usage(notebook: Notebook, imports: Mapping[str, str]) -> StepUsage:
    """How the notebook uses ``step``, whatever it calls that."""
    used = StepUsage()
    for cell in notebook.cells:
        for node in ast.walk(cell.tree) if cell.tree else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                target = node.targets[0]
                called = _dotted_name(node.value.func, imports)
                if called == "workbench.step" and isinstance(target, ast.Name):
                    used.step = target.id
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                _record_use(node, node.func, cell, used)
    return used


def _record_use(node: ast.Call, function: ast.Attribute, cell: Cell, used: StepUsage) -> None:
    kind = _STEP_METHODS.get(function.attr)
    if kind is None or not isinstance(function.value, ast.Name):
        return
    if function.value.id != used.step or not (node.args or node.keywords):
        return
    first = node.args[0] if node.args else node.keywords[0].value
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        used.named[kind].setdefault(first.value, (cell, node.lineno))
    else:
        used.computed.add(kind)


def _check_parameters(notebook: Notebook) -> Iterator[Finding]:
    tagged = notebook.parameters
    if len(tagged) != 1:
        found = f"{len(tagged)} cells are" if tagged else "no cell is"
        cells = ", ".join(str(cell.number) for cell in tagged)
        where = f": {cells}" if cells else ""
        yield Finding("parameters-cell", f"{found} tagged `parameters`{where}")
        return
    (cell,) = tagged
    given = scopes.assigned_names(cell)
    after = [other for other in notebook.cells if other.number > cell.number]
    read = {
        node.id
        for other in notebook.cells
        if other.tree
        for node in ast.walk(other.tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for name, line in given.items():
        if name not in read:
            yield Finding("parameter-unused", f"`{name}` is never read", cell.number, cell.id, line)
    for other in after:
        for name, line in scopes.assigned_names(other).items():
            if name in given:
                message = f"`{name}` is a parameter and is given another value"
                yield Finding("parameter-reassigned", message, other.number, other.id, line)


def _contract_error(notebook: Notebook, rule: str, error: Exception) -> Finding:
    """A finding at the line that the error names, where it names one."""
    what = error.what if isinstance(error, ContractError | ParameterError) else str(error)
    if rule == "contract":
        return Finding(rule, what)
    (cell,) = notebook.parameters
    where = str(getattr(error, "where", "") or "")
    _, marked, line = where.rpartition("line ")
    at = int(line) if marked and line.isdigit() else None
    return Finding(rule, what, cell.number, cell.id, at)


def _check_fixture(contract: StepContract) -> Iterator[Finding]:
    fixture, declaration = contract.declaration.fixture, contract.declaration
    for name, values in (("parameters", fixture.parameters), ("other", fixture.other)):
        try:
            contract.validate({**fixture.parameters, **values})
        except ParameterError as error:
            yield Finding("fixture", f"fixture.{name}: {error.what}")
    for name in fixture.inputs:
        if name not in declaration.inputs:
            yield Finding("fixture", f"fixture.inputs: no input {name!r} is declared")
    for name, declared in declaration.inputs.items():
        if not declared.optional and name not in fixture.inputs:
            yield Finding("fixture", f"fixture.inputs says nothing of {name!r}")
    if contract.parameters.model_fields and not fixture.other:
        yield Finding("no-other-fixture", "the fixture has no `other` parameters")
    if not declaration.outputs:
        yield Finding("no-outputs", "the contract declares no output")
    if not declaration.owner:
        yield Finding("no-owner", "the contract names no owner")


def _check_declarations(declaration: Declaration, used: StepUsage) -> Iterator[Finding]:
    declared = {
        "input": set(declaration.inputs),
        "output": set(declaration.outputs),
        "secret": set(declaration.secrets),
    }
    for kind, known in declared.items():
        for name, (cell, line) in used.named[kind].items():
            if name not in known:
                message = f"{kind} {name!r} is not declared"
                yield Finding(f"undeclared-{kind}", message, cell.number, cell.id, line)
        if kind in used.computed:
            continue  # which ones it means is only known when it runs
        word = "missing" if kind == "output" else "unused"
        for name in sorted(known - set(used.named[kind])):
            yield Finding(f"{word}-{kind}", f"{kind} {name!r} is declared, and no cell uses it")


# ---- All that can be said of a notebook without running it.


def run_static_checks(path: Path, known: Mapping[str, str] | None = None) -> list[Finding]:
    """Every finding of every static rule, in the order of cells.

    Args:
        known: Secret values by name, to be found in any spelling.

    Raises:
        ContractError: The file is no notebook at all.
    """
    book = notebook.read_notebook(path)
    imports = notebook_imports(book.cells)
    found = [*check_format(book), *check_contract(book, imports), *names.check_names(book.cells)]
    for cell in book.cells:
        found.extend(check_cell(cell, imports, known or {}))
    found.extend(_check_markdown(book, known or {}))
    return sort_findings(found)


def _check_markdown(book: Notebook, known: Mapping[str, str]) -> list[Finding]:
    """Credentials in Markdown, where people paste them too."""
    found = []
    for raw in book.content["cells"]:
        if raw["cell_type"] != "code":
            for leak in secret_scan.scan_text(ipynb.cell_source(raw), known):
                message = f"in a {raw['cell_type']} cell, looks like a credential: {leak.name}"
                found.append(Finding("secret", message, None, ipynb.cell_id(raw), leak.line))
    return found
