"""The contract against the code: what is declared and not used, and used and not declared."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from workbench.errors import ContractError, ParameterError
from workbench.pipeline.checking import code, scopes
from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.checking.notebook import Cell, Notebook
from workbench.pipeline.contracts import contract as contracts
from workbench.pipeline.contracts.contract import Declaration, StepContract

_KINDS = {
    "input": "input",
    "optional_input": "input",
    "input_list": "input",
    "output": "output",
    "secret": "secret",
}


@dataclass
class Used:
    """Names given to ``step.input`` and its like, with where.

    ``computed`` holds the kinds for which some name is no literal.
    """

    named: dict[str, dict[str, tuple[Cell, int]]] = field(
        default_factory=lambda: {"input": {}, "output": {}, "secret": {}}
    )
    computed: set[str] = field(default_factory=set)
    step: str | None = None


def check(notebook: Notebook, imports: Mapping[str, str]) -> Iterator[Finding]:
    """Contract and parameters; a notebook without a readable contract gets the reason."""
    yield from _parameters(notebook)
    declaration = notebook.content["metadata"].get("workbench")
    if declaration is None:
        yield Finding("contract", "the notebook declares no contract")
    used = used_in(notebook, imports)
    if used.step is None:
        yield Finding("no-step", "no cell calls workbench.step()")
    try:
        contract = contracts.read(notebook.path)
    except (ContractError, ParameterError) as error:
        at_parameters = "parameter" in str(error)
        if len(notebook.parameters) == 1 or not at_parameters:
            rule = "parameters-cell" if at_parameters else "contract"
            yield _about_parameters(notebook, rule, error)
        return
    if declaration is not None:
        yield from _fixture(contract)
        yield from _declared(contract.declaration, used)


def used_in(notebook: Notebook, imports: Mapping[str, str]) -> Used:
    """How the notebook uses ``step``, whatever it calls that."""
    used = Used()
    for cell in notebook.cells:
        for node in ast.walk(cell.tree) if cell.tree else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                target = node.targets[0]
                called = code.origin(node.value.func, imports)
                if called == "workbench.step" and isinstance(target, ast.Name):
                    used.step = target.id
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                _note(node, node.func, cell, used)
    return used


def _note(node: ast.Call, function: ast.Attribute, cell: Cell, used: Used) -> None:
    kind = _KINDS.get(function.attr)
    if kind is None or not isinstance(function.value, ast.Name):
        return
    if function.value.id != used.step or not (node.args or node.keywords):
        return
    first = node.args[0] if node.args else node.keywords[0].value
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        used.named[kind].setdefault(first.value, (cell, node.lineno))
    else:
        used.computed.add(kind)


def _parameters(notebook: Notebook) -> Iterator[Finding]:
    tagged = notebook.parameters
    if len(tagged) != 1:
        found = f"{len(tagged)} cells are" if tagged else "no cell is"
        cells = ", ".join(str(cell.number) for cell in tagged)
        where = f": {cells}" if cells else ""
        yield Finding("parameters-cell", f"{found} tagged `parameters`{where}")
        return
    (cell,) = tagged
    given = scopes.assigned_in(cell)
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
        for name, line in scopes.assigned_in(other).items():
            if name in given:
                message = f"`{name}` is a parameter and is given another value"
                yield Finding("parameter-reassigned", message, other.number, other.id, line)


def _about_parameters(notebook: Notebook, rule: str, error: Exception) -> Finding:
    """A finding at the line that the error names, where it names one."""
    what = error.what if isinstance(error, ContractError | ParameterError) else str(error)
    if rule == "contract":
        return Finding(rule, what)
    (cell,) = notebook.parameters
    where = str(getattr(error, "where", "") or "")
    _, marked, line = where.rpartition("line ")
    at = int(line) if marked and line.isdigit() else None
    return Finding(rule, what, cell.number, cell.id, at)


def _fixture(contract: StepContract) -> Iterator[Finding]:
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


def _declared(declaration: Declaration, used: Used) -> Iterator[Finding]:
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
