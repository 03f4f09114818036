"""What a step notebook promises: parameters, inputs, outputs and what it needs to run.

The parameters stand in the notebook's ``parameters`` cell, the rest in its metadata under
``workbench``. Reading a contract executes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.core import digest
from workbench.core.errors import ContractError
from workbench.core.workspace import Workspace
from workbench.pipeline import ipynb, parameters
from workbench.pipeline.spec import MODULE_OF_KIND, StepSpec
from workbench.records.base import Ref

Json = dict[str, Any]
ServiceName = Literal["mongod", "mlflow", "label-studio"]


class _DeclarationPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_DeclarationPart):
    """A record the step reads, or with ``many`` a list of them. An optional one may be absent."""

    kind: str
    optional: bool = False
    many: bool = False


class Output(_DeclarationPart):
    kind: str


class PathParameter(_DeclarationPart):
    """A parameter that names a file or folder, unless it is one of the words in ``unless``."""

    unless: tuple[str, ...] = ()


class Resources(_DeclarationPart):
    threads: int = 1
    timeout_s: float = 3600
    memory_gib: float = 4
    gpus: float = 0


class Access(_DeclarationPart):
    """What a step reads, writes or calls beyond its inputs, outputs, paths and services.

    ``reads`` and ``writes`` are paths, relative ones below the project; ``network`` holds hosts.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    network: tuple[str, ...] = ()


class Fixture(_DeclarationPart):
    """The small case on which a notebook is checked.

    Attributes:
        parameters: Values that make it quick.
        other: A second set of values, which has to change some output.
        inputs: Input to ``PIPELINE.yaml:step.output``, made by running that pipeline.
        pipeline: Parameters of that pipeline.
    """

    parameters: Json = {}
    other: Json = {}
    inputs: dict[str, str] = {}
    pipeline: Json = {}


class Declaration(_DeclarationPart):
    """The ``workbench`` entry of a notebook's metadata.

    ``secrets`` names environment variables whose values the step may ask for; a value never stands
    in a parameter. ``owner`` answers for the notebook.
    """

    inputs: dict[str, Input] = {}
    outputs: dict[str, Output] = {}
    paths: dict[str, PathParameter] = {}
    resources: Resources = Resources()
    services: tuple[ServiceName, ...] = ()
    secrets: tuple[str, ...] = ()
    access: Access = Access()
    fixture: Fixture = Fixture()
    owner: str | None = None

    @property
    def shaping(self) -> Json:
        """The part that can shape outputs: who owns or how one checks it is left out."""
        return self.model_dump(mode="json", exclude={"fixture", "owner"})


@dataclass(frozen=True)
class StepContract:
    """A notebook as the runner sees it.

    ``cells`` are the code cells in order as pairs of id and source, the parameters cell excepted:
    its defaults count through the values that are used. ``code`` digests the sources. A ``plain``
    notebook has no contract: all of its cells count, and only given parameters have values.
    """

    name: str
    notebook: Path
    declaration: Declaration
    parameters: type[BaseModel]
    cells: tuple[tuple[str, str], ...]
    plain: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(source for _, source in self.cells)

    @property
    def code(self) -> str:
        return digest.of_json(list(self.sources))

    @property
    def import_sources(self) -> tuple[str, ...]:
        """What decides which modules the step runs: its cells, and what `Step.load` imports."""
        kinds = {declared.kind for declared in self.declaration.inputs.values()}
        loaded = sorted({MODULE_OF_KIND[kind] for kind in kinds if kind in MODULE_OF_KIND})
        return (*self.sources, *(f"import {module}" for module in loaded))

    def validate(self, given: Json) -> Json:
        checked = parameters.validate_parameters(self.parameters, given, where=self.notebook.name)
        return {name: checked[name] for name in given} if self.plain else checked

    def spec(
        self,
        place: Workspace,
        folder: Path,
        cache: Path,
        *,
        parameters: Json,
        inputs: Mapping[str, Ref | tuple[Ref, ...] | None],
        **changes: Any,
    ) -> StepSpec:
        """What one execution of the notebook is given.

        Args:
            parameters: As `validate` returns them.
            changes: Fields of `StepSpec` that go before what the contract says.
        """
        declared, resources = self.declaration, self.declaration.resources
        return StepSpec(
            **{
                "step": self.name,
                "notebook": str(self.notebook),
                "home": str(place.root),
                "folder": str(folder),
                "cache": str(cache),
                "parameters": parameters,
                "inputs": dict(inputs),
                "declared_inputs": {n: d.model_dump() for n, d in declared.inputs.items()},
                "declared_outputs": {n: d.model_dump() for n, d in declared.outputs.items()},
                "environment": {},
                "secrets": declared.secrets,
                **resources.model_dump(),
                **changes,
            }
        )


def read_contract(notebook: Path, *, name: str | None = None) -> StepContract:
    """Read a step notebook; raises `ContractError` with what to mend.

    Args:
        name: The step's name where it is not the file's, as for promoted notebooks.
    """
    content = ipynb.load_notebook(notebook)
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in cells if "parameters" in ipynb.cell_tags(cell)]
    parameters.require_python(content, notebook)
    if parameters.has_no_contract(content):
        model = parameters.untyped_parameters_model(ipynb.cell_source(tagged[0]) if tagged else "")
        return StepContract(
            name or notebook.stem, notebook, Declaration(), model, _cell_sources(cells), plain=True
        )
    if len(tagged) != 1:
        raise ContractError(
            f"a step has exactly one cell tagged `parameters`, found {len(tagged)}",
            where=notebook,
            hint="Tag it in JupyterLab under Property Inspector → Cell Tags",
        )
    try:
        declaration = Declaration.model_validate(content["metadata"].get("workbench", {}))
    except ValidationError as error:
        raise ContractError(
            f"the contract cannot be read: {error.errors()[0]['msg']}",
            where=f"{notebook}, metadata workbench.{_error_location(error)}",
            hint="ARCHITECTURE.md shows the form of a contract",
        ) from error
    imports = parameters.imports_of_cells(ipynb.cell_source(cell) for cell in cells)
    model = parameters.parameters_model(
        ipynb.cell_source(tagged[0]), where=notebook.name, imports=imports
    )
    for path in declaration.paths:
        if path not in model.model_fields:
            raise ContractError(f"path parameter {path!r} is not in the parameters", where=notebook)
    kept = [cell for cell in cells if cell is not tagged[0]]
    return StepContract(name or notebook.stem, notebook, declaration, model, _cell_sources(kept))


def _cell_sources(cells: list[Json]) -> tuple[tuple[str, str], ...]:
    """Pairs of id and source; old notebooks have no ids."""
    return tuple(
        (str(cell.get("id", f"cell {number}")), ipynb.cell_source(cell))
        for number, cell in enumerate(cells, start=1)
    )


def notebook_without_outputs(notebook: Path) -> bytes:
    """The notebook as canonical bytes, with outputs and what execution leaves behind removed."""
    content = ipynb.load_notebook(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        for noise in ("execution", "papermill"):
            cell["metadata"].pop(noise, None)
    content["metadata"].pop("papermill", None)
    return digest.canonical_json(content)


def _error_location(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"])
