"""The rules of `workbench check`, and one finding of one rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """``why`` it matters and how to ``mend`` it; ``fixable`` when `mending` can do that."""

    severity: Severity
    why: str
    mend: str
    fixable: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing found. ``cell`` counts code cells from 1, as prompts do; ``line`` within it."""

    rule: str
    message: str
    cell: int | None = None
    cell_id: str | None = None
    line: int | None = None

    @property
    def severity(self) -> Severity:
        return RULES[self.rule].severity

    @property
    def is_error(self) -> bool:
        return self.severity == "error"

    def as_json(self) -> Json:
        rule = RULES[self.rule]
        return {
            **asdict(self),
            "severity": rule.severity,
            "why": rule.why,
            "mend": rule.mend,
            "fixable": rule.fixable,
        }


def sort_findings(findings: list[Finding]) -> list[Finding]:
    """By cell and line, what concerns the whole notebook first; each said once."""
    unique = dict.fromkeys(findings)
    return sorted(unique, key=lambda f: (f.cell or 0, f.line or 0, not f.is_error, f.rule))


def _error(why: str, mend: str, *, fixable: bool = False) -> Rule:
    return Rule("error", why, mend, fixable)


def _warning(why: str, mend: str, *, fixable: bool = False) -> Rule:
    return Rule("warning", why, mend, fixable)


RULES: dict[str, Rule] = {
    # Form
    "notebook-form": _error(
        "Older forms have no cell ids, and tools disagree about broken ones.",
        "Save it in a current JupyterLab, or use --fix",
        fixable=True,
    ),
    "cell-id": _error(
        "Findings, comments and diffs point at cells by id.",
        "Use --fix: it gives new ids",
        fixable=True,
    ),
    "kernelspec": _error(
        "The name of somebody's own environment exists on no other machine.",
        "Use --fix: it names the neutral python3",
        fixable=True,
    ),
    "outputs-committed": _error(
        "Outputs carry data, paths and secrets into the repository and hide changes in diffs.",
        "Use --fix: it clears them. The runner keeps every executed notebook",
        fixable=True,
    ),
    "ran-out-of-order": _warning(
        "It was last run in another order than production will run it.",
        "Restart the kernel and run all cells",
        fixable=True,
    ),
    "not-python": _error("The cell cannot run.", "Mend the syntax"),
    # Parameters and contract
    "parameters-cell": _error(
        "Parameters are typed from this cell; without it nothing can be set or refused.",
        "One cell tagged `parameters` with annotated literals, like `epochs: int = 12`",
        fixable=True,
    ),
    "parameter-reassigned": _error(
        "The value that was asked for, and recorded, is not the one that is used.",
        "Give the new value a name of its own",
    ),
    "parameter-unused": _error(
        "Whoever sets it believes that it does something.", "Use it, or take it out"
    ),
    "contract": _error(
        "The pipeline joins notebooks by their contracts.",
        "Write it in the notebook's metadata under `workbench`; --fix writes a skeleton",
        fixable=True,
    ),
    "no-step": _error(
        "Without it the notebook gets no inputs and hands nothing over.",
        "`step = workbench.step()` in a cell after the parameters",
    ),
    "undeclared-input": _error(
        "An input that is not declared cannot be joined and does not count in the step's key.",
        "Declare it in the metadata under workbench.inputs with its kind",
    ),
    "unused-input": _error(
        "The step waits for it, and runs again when it changes, for nothing.",
        "Use it, or take it out of workbench.inputs",
    ),
    "undeclared-output": _error(
        "The runner refuses it at the end of a long run.",
        "Declare it in the metadata under workbench.outputs with its kind",
    ),
    "missing-output": _error(
        "Steps below wait for it.", "Call step.output(name, ref), or take it out of the contract"
    ),
    "undeclared-secret": _error(
        "step.secret refuses what is not declared.", "Declare its name under workbench.secrets"
    ),
    "unused-secret": _warning(
        "A secret is given to more processes than need it.", "Take it out of workbench.secrets"
    ),
    "no-outputs": _warning(
        "A step that makes nothing cannot be cached, joined or compared.",
        "Hand over a record with step.output",
    ),
    "no-owner": _warning(
        "Somebody has to be asked when it fails at night.", "Name one: workbench.owner"
    ),
    "fixture": _error(
        "The check runs the notebook on it.",
        "Mend workbench.fixture: parameters, other, inputs, pipeline",
    ),
    "no-other-fixture": _warning(
        "Whether parameters shape what comes out was not tried.",
        "Give workbench.fixture.other a second set of values",
    ),
    # Names
    "undefined-name": _error(
        "The cell fails in a fresh kernel: the name lives in yours only.",
        "Define it in a cell above, or import it",
    ),
    "out-of-order": _error(
        "It works only when a later cell was run before: hidden state of your kernel.",
        "Move the definition above its first use",
    ),
    "star-import": _warning(
        "What it brings in cannot be told, so other names cannot be checked.",
        "Import the names that are used",
    ),
    # Code
    "asks-a-person": _error("In production nobody answers.", "Make it a parameter"),
    "installs-packages": _error(
        "The environment is the lock; what is installed on the way is not recorded.",
        "Add it to the project's dependencies and lock again (`make lock`)",
    ),
    "shell-command": _warning(
        "A shell's errors are no errors of the notebook, and commands differ by machine.",
        "Call a function of the package, or subprocess.run(..., check=True)",
    ),
    "magic": _warning(
        "It acts on the interactive session, or runs code that no check can read.", "Take it out"
    ),
    "absolute-path": _error(
        "It exists on one machine only, and what lies there is in no record.",
        "A parameter declared under workbench.paths, or step.path(...) below the project",
        fixable=True,
    ),
    "secret": _error(
        "Whoever can read the repository can use it.",
        "Revoke it, declare its name under workbench.secrets and use step.secret(name)",
    ),
    "sdk-import": _error(
        "Each big SDK is met in one place; elsewhere nothing guards its faults and its state.",
        "Use the workbench module that wraps it",
    ),
    "own-workspace": _error(
        "What it finds there is no input: neither key nor lineage knows of it.",
        "step.workspace and step.store, and an input for each record that it starts from",
    ),
    "starts-servers": _error(
        "In production the runner starts what the contract names, and knows where it is.",
        "Name them under workbench.services",
    ),
    "long-definition": _warning(
        "Nobody can import or test it here, and its changes drown in the notebook.",
        "Move it into the package",
    ),
    # On the fixture
    "failed": _error("It does not run on its own fixture.", "Mend the cell that is named"),
    "changed-meanwhile": _error(
        "What was run is not what is there now: the notebook, a module, the lock or a package.",
        "Check it again",
    ),
    "fixture-unready": _error(
        "The inputs of the check could not be made.", "Mend the pipeline run that is named"
    ),
    "cell-not-executed": _error(
        "A cell that did not run proves nothing.", "Let every cell run on the fixture"
    ),
    "over-budget": _error(
        "It will be ended in production when it goes over.",
        "Raise it in workbench.core.processes, or use less",
    ),
    "near-budget": _warning(
        "A little more data, or a slower machine, and it is ended.",
        "Raise it in workbench.core.processes, or use less",
    ),
    "output-invalid": _error("Steps below cannot read it.", "Write it through its stage's `save`"),
    "output-empty": _error("Steps below have nothing to work on.", "Make the fixture larger"),
    "not-repeatable": _error(
        "The same work has two results, so neither cache nor audit can be trusted.",
        "Seed everything random, fix the order of sets and threads, leave times out of records",
    ),
    "parameters-ignored": _error(
        "A parameter that changes nothing misleads.",
        "Use the parameters, or choose a set in workbench.fixture.other that matters",
    ),
    "accepts-anything": _warning(
        "A wrong value is met in the middle of the work, not before.", "Give it a narrower type"
    ),
    "undeclared-read": _error(
        "It shapes what comes out, and neither key nor lineage knows of it.",
        "A path parameter under workbench.paths, or workbench.access.reads",
    ),
    "undeclared-write": _error(
        "It outlives the step, and two runs meet there.",
        "Use step.folder or step.cache, or declare it under workbench.access.writes",
    ),
    "undeclared-network": _error(
        "What it answers is in no record, and production may have no way there.",
        "Declare the service under workbench.services, or the host under workbench.access.network",
    ),
    "watch-incomplete": _warning(
        "Reads and writes of libraries outside Python were not seen.",
        "Check again on Linux 5.5 or newer, where seccomp is allowed",
    ),
    "secret-in-output": _error(
        "The executed notebook is kept and shown.", "Never print a secret, nor what carries one"
    ),
}
