"""A step notebook's contract: parameters, inputs, outputs and what it needs to run.

The parameters are in the notebook's ``parameters`` cell, everything else in its metadata under
``workbench``. Reading a contract executes nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.core import digest, secret_scan
from workbench.core.errors import ContractError, ParameterError
from workbench.core.names import check_name, check_text, shown
from workbench.core.text import path_hint
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.pipeline import ipynb, parameters
from workbench.pipeline.spec import MODULE_OF_KIND, StepSpec
from workbench.records.base import Ref

__all__ = ()

_ServiceName = Literal["mongod", "mlflow", "label-studio"]


class _DeclarationPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_DeclarationPart):
    """A record that the step reads, or a list of them with ``many``; ``optional`` may be absent."""

    kind: str
    optional: bool = False
    many: bool = False


class Output(_DeclarationPart):
    """A record that the step writes."""

    kind: str


class PathParameter(_DeclarationPart):
    """A parameter that names a file or folder, unless its value matches one of ``unless``.

    ``unless`` are values, or patterns as in file names, such as ``*=*``.
    """

    unless: tuple[str, ...] = ()

    def excepts(self, value: str) -> bool:
        """Whether ``value`` names no file or folder."""
        return any(fnmatchcase(value, pattern) for pattern in self.unless)


class Resources(_DeclarationPart):
    """What the step needs: CPU threads, time limit, memory and GPUs."""

    threads: int = 1
    timeout_s: float = 3600
    memory_gib: float = 4
    gpus: float = 0


class Access(_DeclarationPart):
    """What a step reads, writes or calls beyond its inputs, outputs, paths and services.

    ``reads`` and ``writes`` are paths, relative to the project; ``network`` lists hosts.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    network: tuple[str, ...] = ()


class Fixture(_DeclarationPart):
    """The small example on which a notebook is checked.

    Attributes:
        parameters: Values that make it quick.
        other: A second set of values, which must change some output.
        inputs: Input to ``PIPELINE.yaml:step.output``, made by running that pipeline.
        pipeline: Parameters of that pipeline.
    """

    parameters: Json = {}
    other: Json = {}
    inputs: dict[str, str] = {}
    pipeline: Json = {}


class Declaration(_DeclarationPart):
    """The ``workbench`` entry of a notebook's metadata.

    ``secrets`` names environment variables whose values the step may ask for; values are never
    parameters. ``owner`` is responsible for the notebook.
    """

    inputs: dict[str, Input] = {}
    outputs: dict[str, Output] = {}
    paths: dict[str, PathParameter] = {}
    resources: Resources = Resources()
    services: tuple[_ServiceName, ...] = ()
    secrets: tuple[str, ...] = ()
    access: Access = Access()
    fixture: Fixture = Fixture()
    owner: str | None = None

    @property
    def shaping(self) -> Json:
        """The part that can change outputs: without the owner and the fixture of checks."""
        return self.model_dump(mode="json", exclude={"fixture", "owner"})


@dataclass(frozen=True)
class StepContract:
    """A step notebook as the runner sees it.

    Attributes:
        name: The step's name.
        notebook: The ``.ipynb`` file.
        declaration: The contract in the notebook's metadata.
        parameters: Pydantic model of the parameters cell.
        cells: Pairs of id and source of the code cells in order, without the parameters cell.
        plain: The notebook has no contract: all cells count, parameters have no types.
        content: The notebook as it was read, see `notebook_without_outputs`.
    """

    name: str
    notebook: Path
    declaration: Declaration
    parameters: type[BaseModel]
    cells: tuple[tuple[str, str], ...]
    plain: bool = False
    content: bytes = field(default=b"", repr=False)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(source for _, source in self.cells)

    @property
    def code(self) -> str:
        """Digest of the code cells."""
        return digest.of_json(list(self.sources))

    @property
    def import_sources(self) -> tuple[str, ...]:
        """What decides which modules the step runs: its cells, and what `Step.load` imports."""
        kinds = {declared.kind for declared in self.declaration.inputs.values()}
        loaded = sorted({MODULE_OF_KIND[kind] for kind in kinds if kind in MODULE_OF_KIND})
        return (*self.sources, *(f"import {module}" for module in loaded))

    def validate(self, given: Json) -> Json:
        """Parameters as JSON values, defaults filled in.

        Raises:
            ParameterError: A name is unknown, or a value is invalid, looks like a secret, or refers
                to one that the contract does not declare.
        """
        where = self.notebook.name
        secrets = self.declaration.secrets
        parameters.require_no_secrets(given, secrets, where=where)
        checked = parameters.validate_parameters(self.parameters, given, where=where)
        parameters.require_no_secrets(checked, secrets, where=where)
        for name, value in checked.items():
            reference = secret_scan.REFERENCE.match(value) if isinstance(value, str) else None
            if reference and reference[1] not in secrets:
                raise ParameterError(
                    f"parameter {name!r} refers to {reference[1]}, which the step may not read",
                    where=where,
                    hint=f"Declare {reference[1]} under `secrets` in the notebook's contract",
                )
        return {name: checked[name] for name in given} if self.plain else checked

    def path_parameters(self, values: Json) -> list[str]:
        """Parameters whose values name a file or folder."""
        declared = self.declaration.paths
        return [name for name, path in declared.items() if not path.excepts(values[name])]

    def absolute_path(self, name: str, value: str, base: Path) -> str:
        """The value of a path parameter, made absolute.

        Args:
            name: The parameter.
            value: A path, absolute or relative to ``base``.
            base: Folder that relative paths start from.

        Raises:
            ParameterError: No such file or folder.
        """
        path = (base / value).resolve()
        if not path.exists():
            patterns = self.declaration.paths[name].unless
            unless = [pattern.replace("*", "…") for pattern in patterns if pattern]
            raise ParameterError(
                f"parameter {name!r}: no such file or folder",
                where=path,
                hint=path_hint(path) or (f"Or use one of: {', '.join(unless)}" if unless else None),
            )
        return str(path)

    def spec(
        self,
        workspace: Workspace,
        folder: Path,
        cache: Path,
        *,
        parameters: Json,
        inputs: Mapping[str, Ref | tuple[Ref, ...] | None],
        **overrides: Any,
    ) -> StepSpec:
        """The spec of one execution of the notebook.

        Args:
            workspace: Where records are read and written.
            folder: Where results of this execution go.
            cache: A folder that later attempts of the same work find again.
            parameters: As `validate` returns them.
            inputs: A reference for each declared input; several where it takes many.
            overrides: Fields of `StepSpec` that take precedence over the contract.
        """
        declared = self.declaration
        return StepSpec(
            **{
                "step": self.name,
                "notebook": str(self.notebook),
                "code": self.code,
                "home": str(workspace.root),
                "folder": str(folder),
                "cache": str(cache),
                "parameters": parameters,
                "inputs": dict(inputs),
                "declared_inputs": {n: d.model_dump() for n, d in declared.inputs.items()},
                "declared_outputs": {n: d.model_dump() for n, d in declared.outputs.items()},
                "environment": {},
                "secrets": declared.secrets,
                **declared.resources.model_dump(),
                **overrides,
            }
        )


def read_contract(notebook: Path, *, name: str | None = None) -> StepContract:
    """Read a step notebook's contract; nothing is executed.

    Args:
        notebook: An ``.ipynb`` file.
        name: The step's name if it is not the file's, as for promoted notebooks.

    Raises:
        ContractError: The notebook or its contract is invalid.
        ParameterError: A parameter's default is not of its type.
    """
    content = ipynb.load_notebook(notebook)
    _require_python(content["metadata"], notebook)
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in cells if "parameters" in ipynb.cell_tags(cell)]
    step = _step_name(name or notebook.stem, notebook)
    if "workbench" not in content["metadata"]:
        model = parameters.untyped_parameters_model(ipynb.cell_source(tagged[0]) if tagged else "")
        sources, stripped = _cell_sources(cells), _without_outputs(content)
        return StepContract(step, notebook, Declaration(), model, sources, True, stripped)
    if len(tagged) != 1:
        raise ContractError(
            f"expected exactly one cell tagged `parameters`, found {len(tagged)}",
            where=notebook,
            hint="Tag it in JupyterLab under Property Inspector → Cell Tags",
        )
    try:
        declaration = Declaration.model_validate(content["metadata"]["workbench"])
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(str(part) for part in problem["loc"])
        raise ContractError(
            f"invalid contract: {problem['msg']}",
            where=f"{notebook}, metadata workbench.{location}",
            hint="docs/how-to/checking.md describes contracts",
        ) from error
    _check_names(declaration, notebook)
    imports = parameters.imports_of_cells(ipynb.cell_source(cell) for cell in cells)
    source = ipynb.cell_source(tagged[0])
    model = parameters.parameters_model(source, where=notebook.name, imports=imports)
    for path in declaration.paths:
        if path not in model.model_fields:
            raise ContractError(f"path parameter {path!r} is not in the parameters", where=notebook)
    others = [cell for cell in cells if cell is not tagged[0]]
    sources, stripped = _cell_sources(others), _without_outputs(content)
    return StepContract(step, notebook, declaration, model, sources, content=stripped)


def require_same_code(notebook: Path, expected: str | None) -> None:
    """Refuse a notebook, executed or not, whose code is not the one that was planned with.

    Its results would be recorded as those of other code.

    Args:
        expected: `StepContract.code`; None if nothing was planned.

    Raises:
        ContractError: It was changed.
    """
    if expected is None:
        return
    content = ipynb.load_notebook(notebook)
    without = {"injected-parameters"}
    if "workbench" in content["metadata"]:
        without.add("parameters")
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    kept = [cell for cell in cells if without.isdisjoint(ipynb.cell_tags(cell))]
    if expected != digest.of_json([ipynb.cell_source(cell) for cell in kept]):
        raise ContractError(
            "the notebook was changed after the run was planned",
            where=notebook,
            hint="Run the pipeline again",
        )


def _step_name(name: str, notebook: Path) -> str:
    """The name of a step, in NFC: some file systems write accents as characters of their own."""
    try:
        return check_text(unicodedata.normalize("NFC", name), "name of a step")
    except ParameterError as error:
        raise ContractError(error.what, where=shown(str(notebook))) from error


def _check_names(declaration: Declaration, notebook: Path) -> None:
    try:
        for name in (*declaration.inputs, *declaration.outputs):
            check_name(name, "name of an input or output")
        for name in declaration.secrets:
            check_name(name, "name of a secret")
    except ParameterError as error:
        raise ContractError(error.what, where=notebook) from error


def notebook_without_outputs(notebook: Path) -> bytes:
    """The notebook as canonical JSON bytes, without outputs and traces of execution."""
    return _without_outputs(ipynb.load_notebook(notebook))


def _without_outputs(content: Json) -> bytes:
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        for noise in ("execution", "papermill"):
            cell["metadata"].pop(noise, None)
    content["metadata"].pop("papermill", None)
    return digest.canonical_json(content)


def _require_python(metadata: Json, where: Path) -> None:
    language = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get(
        "language"
    )
    if language and str(language).lower() not in ("python", "ipython"):
        raise ContractError(f"the notebook is written in {language}, not in Python", where=where)


def _cell_sources(cells: list[Json]) -> tuple[tuple[str, str], ...]:
    """Pairs of id and source; cells of old notebooks have no ids."""
    return tuple(
        (str(cell.get("id", f"cell {number}")), ipynb.cell_source(cell))
        for number, cell in enumerate(cells, start=1)
    )
