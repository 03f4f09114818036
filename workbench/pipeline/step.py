"""The object that a notebook talks to: its inputs, outputs, metrics, figures and progress."""

from __future__ import annotations

import importlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core import secret_scan
from workbench.core.encoded_values import MIN_LENGTH
from workbench.core.errors import ContractError, ParameterError, RecordError
from workbench.core.names import check_path, check_text
from workbench.core.types import Json
from workbench.core.workspace import Workspace, project_root, write_atomic
from workbench.pipeline.spec import MODULE_OF_KIND
from workbench.records.base import Record, Ref, kind_of
from workbench.records.dataset import load_dataset
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, DatasetVersion

__all__ = ()

_PROGRESS_INTERVAL_S = 0.2


@dataclass
class Step:
    """A notebook's connection to its run.

    Attributes:
        workspace: The workspace.
        project: Folder that relative path parameters start from.
        folder: Where results of this run go.
        cache: A folder that later attempts of the same work find again.
        threads: Number of CPU threads to use.
        headless: True in a pipeline, where nobody sees the notebook while it runs.
    """

    workspace: Workspace
    project: Path
    folder: Path
    cache: Path
    threads: int
    headless: bool
    declared_inputs: dict[str, Json]
    declared_outputs: dict[str, Json]
    inputs: dict[str, Ref | list[Ref] | None]
    secrets: tuple[str, ...] = ()
    outputs: dict[str, Ref] = field(default_factory=dict)
    _last_progress: float = 0.0

    @classmethod
    def from_spec(cls, spec: Json, *, headless: bool) -> Step:
        """The step that a `StepSpec` describes; the spec is not validated again in the kernel."""
        project = spec.get("project")
        return cls(
            workspace=Workspace(Path(spec["home"])),
            project=Path(project) if project else project_root(Path(spec["notebook"])),
            folder=Path(spec["folder"]),
            cache=Path(spec["cache"]),
            threads=spec["threads"],
            headless=headless,
            declared_inputs=spec["declared_inputs"],
            declared_outputs=spec["declared_outputs"],
            inputs=spec["inputs"],
            secrets=tuple(spec["secrets"]),
        )

    @property
    def store(self) -> Store:
        """The workspace's record store."""
        return Store(self.workspace)

    def input(self, name: str) -> Ref:
        """The reference of a declared input; raises `ContractError` if it is missing."""
        ref = self.optional_input(name)
        if ref is None:
            raise ContractError(
                f"no record for input {name!r}",
                where=self.folder.name,
                hint="Run the step that writes it first, for example with `make run`",
            )
        return ref

    def optional_input(self, name: str) -> Ref | None:
        """As `input`, or None."""
        ref = self._declared_input(name)
        if isinstance(ref, list | tuple):
            raise ContractError(f"input {name!r} is a list", hint="Use step.input_list(name)")
        return ref

    def input_list(self, name: str) -> list[Ref]:
        """The references of an input declared with ``many``, in the order of the fan-out."""
        refs = self._declared_input(name)
        if refs is None:
            return []
        return [refs] if isinstance(refs, str) else list(refs)

    def load(self, name: str) -> Any:
        """A declared input, as the object to work with.

        Returns:
            A `Dataset` for a dataset version, a `Model` for a checkpoint, a bundle or a release,
            and the record itself for every other kind; a list for an input declared with
            ``many``, and None for an optional input that is absent.

        Raises:
            ContractError: The input is not declared, or it is required and absent.
        """
        declared = self.declared_inputs.get(name, {})
        if declared.get("many"):
            return [self._load(ref) for ref in self.input_list(name)]
        ref = self.optional_input(name) if declared.get("optional") else self.input(name)
        return None if ref is None else self._load(ref)

    def save(self, name: str, result: Any) -> Ref:
        """Hand over ``result`` as a declared output, and return its reference.

        Args:
            result: A record, which is written to the store; a reference of one that is there; or
                an object with a ``ref``, such as a selection.
        """
        if isinstance(result, Record):
            ref = self.store.put(result)
        else:
            ref = result if isinstance(result, str) else result.ref
        self.output(name, ref)
        return ref

    def _load(self, ref: Ref) -> Any:
        kind = kind_of(ref)
        if kind == DatasetVersion.KIND:
            return load_dataset(self.store, ref)
        if MODULE_OF_KIND.get(kind) == "workbench.detection.model":
            # Imported by name: only a step that declares a model depends on the module's code,
            # see `StepContract.import_sources`.
            module = importlib.import_module(MODULE_OF_KIND[kind])
            return module.Model(self.workspace, ref, threads=self.threads)
        return self.store.get(ref, RECORD_TYPES[kind])

    def secret(self, name: str) -> str:
        """The value of a secret that the contract declares. Never print or store it.

        Args:
            name: Of an environment variable, or a parameter's ``${env:NAME}``.

        Raises:
            ContractError: The secret is not declared.
            ParameterError: Its environment variable is not set, or too short to be redacted.
        """
        reference = secret_scan.REFERENCE.match(name)
        name = reference[1] if reference else name
        if name not in self.secrets:
            raise ContractError(
                f"secret {name!r} is not declared",
                hint="Declare it in the notebook's metadata under workbench.secrets",
            )
        value = os.environ.get(name)
        if not value:
            raise ParameterError(
                f"secret {name!r} has no value", hint=f"Set the environment variable {name}"
            )
        if len(value.strip()) < MIN_LENGTH:
            raise ParameterError(
                f"secret {name!r} has fewer than {MIN_LENGTH} characters: it could "
                "not be told from other text and redacted",
                hint="Use a longer one",
            )
        return value

    def _declared_input(self, name: str) -> Ref | list[Ref] | None:
        if name not in self.declared_inputs:
            raise ContractError(
                f"input {name!r} is not declared",
                hint="Declare it in the notebook's metadata under workbench.inputs",
            )
        return self.inputs.get(name)

    def output(self, name: str, ref: Ref) -> None:
        """Declare a record as an output of the step.

        Args:
            name: As in the contract.
            ref: The record; it must be complete in the store.
        """
        declared = self.declared_outputs.get(name)
        if declared is None:
            raise ContractError(
                f"output {name!r} is not declared",
                hint="Declare it in the notebook's metadata under workbench.outputs",
            )
        if kind_of(ref) != declared["kind"]:
            raise ContractError(f"output {name!r} must be a {declared['kind']}", where=ref)
        if not self.store.exists(ref):
            raise RecordError(f"output {name!r} is not in the store", where=ref)
        self.outputs[name] = ref
        write_atomic(
            self.folder / "outputs.json", json.dumps(self.outputs, sort_keys=True).encode()
        )

    def metric(
        self,
        name: str,
        value: float,
        step: int | None = None,
        slice: str | None = None,  # noqa: A002 - the usual term
    ) -> None:
        """Log a number to MLflow.

        Args:
            name: Of the metric.
            value: The number.
            step: X value, for a curve.
            slice: The slice of the data that it is measured on.
        """
        key = check_path(f"{name}/{slice}" if slice else name, "name of a metric")
        line = {"name": key, "value": float(value), "step": step or 0, "at": time.time()}
        with (self.folder / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def figure(self, name: str, figure: Any) -> None:
        """Save a matplotlib figure, or anything with ``save`` such as a Pillow image, as PNG.

        None, which plots of findings return where there are none, is said instead of saved.

        In a pipeline the figure is closed then: nobody looks at the notebook while it runs, and
        open figures use memory. By hand it is shown below the cell.
        """
        check_text(name, "name of a figure")
        if figure is None:
            print(f"no figure {name!r}: there is nothing to show")
            return
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        if hasattr(figure, "savefig"):
            figure.savefig(path, bbox_inches="tight", dpi=110)
            if self.headless:
                import matplotlib.pyplot as plt

                plt.close(figure)
        else:
            figure.save(path)

    def progress(self, done: int, total: int) -> None:
        """Show progress. Cheap enough to call for every frame.

        Args:
            done: Number of items done.
            total: Number of items in all.
        """
        now = time.monotonic()
        if done < total and now - self._last_progress < _PROGRESS_INTERVAL_S:
            return
        self._last_progress = now
        data = json.dumps({"done": done, "total": total}).encode()
        (self.folder / "progress.tmp").write_bytes(data)
        (self.folder / "progress.tmp").replace(self.folder / "progress.json")

    def path(self, value: str | Path) -> Path:
        """A path parameter as an absolute path; relative ones start from the project."""
        return (self.project / Path(value)).resolve()
