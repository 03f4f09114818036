"""The rules of `workbench check`, and one finding of one rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from workbench.core.types import Json

__all__ = ["Finding"]

_Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class _Rule:
    """One rule.

    Attributes:
        why: Why it matters in production.
        remedy: How to fix it.
        fixable: Whether `workbench check --fix` fixes it.
    """

    severity: _Severity
    why: str
    remedy: str
    fixable: bool = False


@dataclass(frozen=True)
class Finding:
    """One violation of a rule.

    Attributes:
        rule: A key of `RULES`.
        message: What is wrong, without the location.
        cell: Number of the code cell, counted from 1 as prompts do; None for the whole notebook.
        line: Line within the cell, counted from 1.
    """

    rule: str
    message: str
    cell: int | None = None
    cell_id: str | None = None
    line: int | None = None

    @property
    def severity(self) -> _Severity:
        return RULES[self.rule].severity

    @property
    def is_error(self) -> bool:
        return self.severity == "error"

    def as_json(self) -> Json:
        """The finding and its rule, as `workbench check --json` prints them."""
        rule = RULES[self.rule]
        return {
            **asdict(self),
            "severity": rule.severity,
            "why": rule.why,
            "mend": rule.remedy,
            "fixable": rule.fixable,
        }


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Remove duplicates and sort.

    Returns:
        Findings by cell and line; those on the whole notebook come first.
    """
    unique = dict.fromkeys(findings)
    return sorted(unique, key=lambda f: (f.cell or 0, f.line or 0, not f.is_error, f.rule))


def _error(why: str, remedy: str, *, fixable: bool = False) -> _Rule:
    return _Rule("error", why, remedy, fixable)


def _warning(why: str, remedy: str, *, fixable: bool = False) -> _Rule:
    return _Rule("warning", why, remedy, fixable)


RULES: dict[str, _Rule] = {
    # Notebook file
    "notebook-form": _error(
        "Formats before 4.5 have no cell ids, and tools read damaged files differently.",
        "Save it in a current JupyterLab, or use --fix",
        fixable=True,
    ),
    "cell-id": _error(
        "Findings, comments and diffs refer to cells by id.",
        "Use --fix to assign new ids",
        fixable=True,
    ),
    "kernelspec": _error(
        "The name of a personal environment exists on no other machine.",
        "Use --fix to set the neutral python3 kernel",
        fixable=True,
    ),
    "outputs-committed": _error(
        "Outputs carry data, paths and secrets into the repository and hide changes in diffs.",
        "Use --fix to clear them. The runner keeps every executed notebook",
        fixable=True,
    ),
    "ran-out-of-order": _warning(
        "The last execution order differs from the order in production.",
        "Restart the kernel and run all cells",
        fixable=True,
    ),
    "not-python": _error("The cell cannot run.", "Fix the syntax"),
    # Parameters and contract
    "parameters-cell": _error(
        "Parameter types are read from this cell; without it no value can be set or rejected.",
        "Tag one cell `parameters`, with annotated literals such as `epochs: int = 12`",
        fixable=True,
    ),
    "parameter-reassigned": _error(
        "The value in use differs from the value that was requested and recorded.",
        "Use another name for the new value",
    ),
    "parameter-unused": _error(
        "Setting the parameter has no effect.", "Use the parameter, or remove it"
    ),
    "contract": _error(
        "Pipelines connect notebooks through their contracts.",
        "Write it in the notebook's metadata under `workbench`; --fix writes a template",
        fixable=True,
    ),
    "no-step": _error(
        "Without a step the notebook has no inputs and no outputs.",
        "Add `step = workbench.step()` to a cell after the parameters",
    ),
    "undeclared-input": _error(
        "An undeclared input cannot be connected and is not part of the step's key.",
        "Declare it with its kind in the metadata under workbench.inputs",
    ),
    "unused-input": _error(
        "The step waits for the input, and reruns when it changes, without using it.",
        "Use the input, or remove it from workbench.inputs",
    ),
    "undeclared-output": _error(
        "The runner rejects it at the end of the run.",
        "Declare it with its kind in the metadata under workbench.outputs",
    ),
    "missing-output": _error(
        "Downstream steps need it.",
        "Call step.output(name, ref), or remove it from the contract",
    ),
    "undeclared-secret": _error(
        "step.secret rejects undeclared names.", "Declare its name under workbench.secrets"
    ),
    "unused-secret": _warning(
        "The secret is exposed to a process that does not need it.",
        "Remove it from workbench.secrets",
    ),
    "no-outputs": _warning(
        "A step without outputs cannot be cached, connected or compared.",
        "Save a record with step.output",
    ),
    "no-owner": _warning("The engineer on call needs to know whom to ask.", "Set workbench.owner"),
    "fixture": _error(
        "The check runs the notebook on its fixture.",
        "Fix workbench.fixture: parameters, other, inputs, pipeline",
    ),
    "no-other-fixture": _warning(
        "It was not tested that parameters change the outputs.",
        "Set a second set of values in workbench.fixture.other",
    ),
    # Names
    "undefined-name": _error(
        "The cell fails in a fresh kernel: the name exists only in your session.",
        "Define it in an earlier cell, or import it",
    ),
    "out-of-order": _error(
        "The cell works only after a later cell has run: hidden state of your kernel.",
        "Move the definition before its first use",
    ),
    "star-import": _warning(
        "The imported names are unknown, so other names cannot be checked.",
        "Import names explicitly",
    ),
    # Code
    "asks-a-person": _error("Production runs are unattended.", "Make it a parameter"),
    "installs-packages": _error(
        "The lock defines the environment; packages installed by a cell are not recorded.",
        "Add it to the project's dependencies and update the lock (`make lock`)",
    ),
    "shell-command": _warning(
        "Commands differ by machine, and by hand a failing one is easily missed; in a run it fails "
        "the step.",
        "Call a function of the package, or subprocess.run(..., check=True)",
    ),
    "magic": _warning(
        "It changes the interactive session, or runs code that no check can read.", "Remove it"
    ),
    "absolute-path": _error(
        "The path exists on one machine only, and its content is not recorded.",
        "Use a parameter declared under workbench.paths, or step.path(...) within the project",
        fixable=True,
    ),
    "secret": _error(
        "Everybody with access to the repository can use it.",
        "Revoke it, declare its name under workbench.secrets and use step.secret(name)",
    ),
    "sdk-import": _error(
        "Each large SDK has one adapter, which handles its errors and its state.",
        "Use the workbench module that wraps it",
    ),
    "own-workspace": _error(
        "Records read this way are no inputs: they are missing from the key and the lineage.",
        "Use step.workspace and step.store, and declare an input for each record it reads",
    ),
    "starts-servers": _error(
        "In production the runner starts the services that the contract declares.",
        "Declare them under workbench.services",
    ),
    "long-definition": _warning(
        "Code in a notebook cannot be imported or tested, and its diffs are hard to review.",
        "Move it into the package",
    ),
    # Fixture runs
    "failed": _error("The notebook fails on its own fixture.", "Fix the failing cell"),
    "changed-meanwhile": _error(
        "The notebook, a module, the lock or a package changed while the check ran.",
        "Run the check again",
    ),
    "fixture-unready": _error(
        "The fixture's inputs could not be created.", "Fix the failing pipeline run"
    ),
    "cell-not-executed": _error(
        "A cell that did not run was not tested.", "Make the fixture execute every cell"
    ),
    "over-budget": _error(
        "Production stops a step that exceeds its resources.",
        "Raise the limit in workbench.resources, or use less",
    ),
    "near-budget": _warning(
        "Slightly more data or a slower machine would exceed the limit.",
        "Raise the limit in workbench.resources, or use less",
    ),
    "output-invalid": _error(
        "Downstream steps cannot read it.", "Save it with the `save` function of its stage"
    ),
    "output-empty": _error("Downstream steps have no data.", "Use a larger fixture"),
    "not-repeatable": _error(
        "Equal runs have different results, so neither cache nor audit can be trusted.",
        "Set all seeds, sort sets, fix the number of threads, keep times out of records",
    ),
    "parameters-ignored": _error(
        "The parameters do not change any output.",
        "Use the parameters, or set values in workbench.fixture.other that change an output",
    ),
    "accepts-anything": _warning(
        "An invalid value fails in the middle of the run, not before it.", "Use a narrower type"
    ),
    "undeclared-read": _error(
        "It affects the outputs, and is missing from the key and the lineage.",
        "Declare a path parameter under workbench.paths, or the path under workbench.access.reads",
    ),
    "undeclared-write": _error(
        "The file outlives the step, and concurrent runs share it.",
        "Use step.folder or step.cache, or declare it under workbench.access.writes",
    ),
    "undeclared-network": _error(
        "The response is not recorded, and production may have no network access.",
        "Declare the service under workbench.services, or the host under workbench.access.network",
    ),
    "watch-incomplete": _warning(
        "File access of native libraries was not observed.",
        "Run the check on Linux 5.5 or newer, with seccomp allowed",
    ),
    "secret-in-output": _error(
        "Executed notebooks are stored and shared.", "Do not print secrets or objects with secrets"
    ),
}
