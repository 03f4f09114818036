"""The test that stands beside a promoted step and runs with all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench import workspace
from workbench.errors import ParameterError
from workbench.pipeline.contracts.contract import StepContract
from workbench.pipeline.promotion.repository import Promoted
from workbench.pipeline.steps.spec import StepResult
from workbench.workspace import Workspace

Json = dict[str, Any]

FOLDER = Path("tests") / "promoted"
_WRONG: tuple[Any, ...] = ("not a value", -1, [], None)
_LINE = 100

_TEXT = '''"""Every promoted version of step `{name}` still is what was promoted.

Written by `workbench promote`, which writes it again: change the notebook, not this.
"""

from __future__ import annotations

{path_import}import pytest

from workbench.errors import ParameterError
from workbench.pipeline import promotion
from workbench.pipeline.contracts import contract

PROJECT = promotion.project_of(__file__)
VERSIONS = promotion.versions(PROJECT, "{name}")
OUTPUTS = {outputs}


@pytest.mark.parametrize("version", VERSIONS)
def test_{function}_is_unchanged(version: int) -> None:
    step = contract.read(promotion.load(PROJECT, "{name}", version).path)
    assert step.name == "{name}"
    assert step.validate({{}}).keys() == step.parameters.model_fields.keys()


def test_{function}_refuses_bad_values() -> None:
    step = contract.read(promotion.load(PROJECT, "{name}", VERSIONS[-1]).path)
    assert sorted(step.declaration.outputs) == OUTPUTS
    with pytest.raises(ParameterError):
        step.validate({{"no_such_parameter": 1}})
'''

_TYPED = """    with pytest.raises(ParameterError):
        step.validate({{{parameter}: {value}}})
"""

_RUN = """

def test_{function}_runs_on_its_fixture(tmp_path: Path) -> None:
    promoted = promotion.load(PROJECT, "{name}", VERSIONS[-1])
    result = promotion.run_on_fixture(promoted, tmp_path)
    assert result.failure is None
    assert sorted(result.outputs) == OUTPUTS
"""


def write(project: Path, name: str, contract: StepContract) -> Path:
    """Write ``tests/promoted/test_STEP.py`` for the newest version; returns where."""
    folder = project / FOLDER
    if (folder.parent / "__init__.py").exists() and not (folder / "__init__.py").exists():
        workspace.write_atomic(folder / "__init__.py", b"")
    path = folder / f"test_{name.replace('-', '_')}.py"
    workspace.write_atomic(path, text(name, contract).encode())
    return path


def text(name: str, contract: StepContract) -> str:
    """The test's source, as ruff would format it."""
    words = {
        "name": name,
        "function": name.replace("-", "_"),
        "outputs": _list(sorted(contract.declaration.outputs)),
        "path_import": "from pathlib import Path\n\n" if is_cheap(contract) else "",
    }
    parts = [_TEXT.format(**words)]
    bad = refused(contract)
    if bad is not None:
        parts.append(_TYPED.format(parameter=json.dumps(bad[0]), value=_literal(bad[1])))
    if is_cheap(contract):
        parts.append(_RUN.format(**words))
    return "".join(parts)


def _list(names: list[str]) -> str:
    line = json.dumps(names)
    if len(f"OUTPUTS = {line}") <= _LINE:
        return line
    return "[\n" + "".join(f"    {json.dumps(name)},\n" for name in names) + "]"


def _literal(value: Any) -> str:
    return "None" if value is None else json.dumps(value)


def refused(contract: StepContract) -> tuple[str, Any] | None:
    """A parameter and a value that its type refuses, if there is one."""
    for name in contract.parameters.model_fields:
        for value in _WRONG:
            try:
                contract.validate({name: value})
            except ParameterError:
                return name, value
    return None


def is_cheap(contract: StepContract) -> bool:
    """Whether a step can be tried alone: no input, no server, no secret."""
    declared = contract.declaration
    needed = [name for name, given in declared.inputs.items() if not given.optional]
    return not (needed or declared.services or declared.secrets or declared.access.network)


def run_on_fixture(promoted: Promoted, folder: Path) -> StepResult:
    """Run a version on its own fixture in a workspace of its own below ``folder``."""
    from workbench.pipeline.contracts import contract as contracts
    from workbench.pipeline.running.executors.local import execute_once

    contract = contracts.read(promoted.path)
    place = Workspace(folder / workspace.FOLDER)
    spec = contract.spec(
        place,
        place.runs / "fixture" / promoted.name,
        place.scratch / promoted.name,
        parameters=contract.validate(contract.declaration.fixture.parameters),
        inputs={},
        step=promoted.name,
    )
    return execute_once(spec)
