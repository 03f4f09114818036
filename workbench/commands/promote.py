"""``promote`` and ``steps``: from a checked notebook to versions that pipelines name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.commands.common import emit, json_option, say
from workbench.errors import ServiceError

if TYPE_CHECKING:
    from workbench.pipeline.promotion.repository import Promoted
    from workbench.workspace import Workspace

by_option = click.option("--by", help="Who moves it. Default: you, as git knows you.")


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("--owner", help="Who answers for the step. Default: the contract's owner.")
@click.option("--reviewer", help="Who looked at it; somebody else than the owner.")
@click.option("--alias", help="Let this alias, such as production, point to the version.")
@json_option
def promote(
    notebook: Path, owner: str | None, reviewer: str | None, alias: str | None, as_json: bool
) -> None:
    """Make a checked NOTEBOOK an immutable version of its step.

    It needs a fresh receipt from `workbench check`, everything that shapes it committed, the
    locked environment, an owner and a reviewer. The same content again is the same version.
    """
    from workbench import workspace
    from workbench.pipeline.promotion import conditions, move, project_of, repository
    from workbench.pipeline.promotion.promote import promote as make

    if alias is not None:
        repository.check_alias(alias)
    place = workspace.find()
    made = make(place, notebook, owner=owner, reviewer=reviewer)
    promoted, project = made.promoted, project_of(notebook)
    name = f"{promoted.name}@{promoted.version}"
    if alias is not None:
        move(place, project, name, alias, by=conditions.who())
    mirrored = _mirror(place, project, promoted.name)
    value = {**_as_json(project, promoted), "new": made.new, "mirrored": mirrored}
    value["test"] = str(made.test)
    to_commit = (promoted.path.parents[1], made.test.parent)
    lines = [
        f"{name} {'promoted' if made.new else 'was promoted before, from the same content'}",
        f"  notebook  {promoted.path}",
        f"  test      {made.test}",
        f"  reviewed by {promoted.record.reviewer}, owned by {promoted.record.owner}",
        "Next",
        f"  git add {' '.join(_relative(folder, project) for folder in to_commit)}",
        f"  in a pipeline file: `notebook: {promoted.name}@{alias or promoted.version}`",
    ]
    if alias is None:
        lines.append(f"  workbench steps alias {name} production")
    emit(value, as_json=as_json, text="\n".join(lines))


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def steps(context: click.Context, as_json: bool) -> None:
    """List promoted steps with their versions and aliases, and move aliases."""
    if context.invoked_subcommand is not None:
        return
    from workbench.pipeline.promotion import repository

    project = _project()
    rows = []
    for name in repository.steps(project):
        found = [repository.load(project, name, n) for n in repository.versions(project, name)]
        rows.append(
            {
                "name": name,
                "versions": [_as_json(project, version) for version in found],
                "aliases": {
                    alias: at.version
                    for alias, at in repository.current_aliases(project, name).items()
                },
                "history": {
                    alias: [move.model_dump(mode="json") for move in moves]
                    for alias, moves in repository.history(project, name).items()
                },
            }
        )
    text = "\n".join(line for row in rows for line in _lines(row))
    nothing = "no step was promoted yet: `workbench promote NOTEBOOK` makes one"
    emit({"steps": rows}, as_json=as_json, text=text or nothing)


@steps.command()
@click.argument("version", metavar="STEP@VERSION")
@click.argument("name", metavar="ALIAS")
@by_option
@json_option
def alias(version: str, name: str, by: str | None, as_json: bool) -> None:
    """Let ALIAS point to STEP@VERSION, or where another alias of STEP points."""
    from workbench import workspace
    from workbench.pipeline.promotion import conditions, move

    place, project = workspace.find(), _project()
    found = move(place, project, version, name, by=by or conditions.who())
    _told(place, project, found, name, as_json=as_json)


@steps.command()
@click.argument("step")
@click.argument("name", metavar="ALIAS")
@by_option
@json_option
def rollback(step: str, name: str, by: str | None, as_json: bool) -> None:
    """Let ALIAS of STEP point where it did before; again goes further back."""
    from workbench import workspace
    from workbench.pipeline.promotion import conditions, roll_back

    place, project = workspace.find(), _project()
    found = roll_back(place, project, step, name, by=by or conditions.who())
    _told(place, project, found, name, as_json=as_json)


@steps.command()
@json_option
def mirror(as_json: bool) -> None:
    """Write to MLflow what it lacks, after it was away or lost."""
    from workbench import workspace
    from workbench.pipeline.promotion import mirror as mirroring

    new = mirroring.mirror(workspace.find(), _project())
    emit({"registered": new}, as_json=as_json, text=f"{new} versions were new to MLflow")


def _project() -> Path:
    from workbench.pipeline.promotion import project_of

    return project_of(Path.cwd() / "pipelines")


def _told(place: Workspace, project: Path, found: Promoted, name: str, *, as_json: bool) -> None:
    mirrored = _mirror(place, project, found.name)
    value = {**_as_json(project, found), "alias": name, "mirrored": mirrored}
    emit(value, as_json=as_json, text=f"{found.name}@{name} is version {found.version}")


def _mirror(place: Workspace, project: Path, name: str) -> bool:
    """Whether MLflow could be told; the repository counts either way."""
    from workbench.pipeline.promotion import mirror as mirroring

    try:
        mirroring.mirror(place, project, [name])
    except ServiceError as error:
        say(f"MLflow was not told: {error}. `workbench steps mirror` makes up for it")
        return False
    return True


def _as_json(project: Path, found: Promoted) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.version,
        "ref": found.ref,
        "notebook": _relative(found.path, project),
        "owner": found.record.owner,
        "reviewer": found.record.reviewer,
        "commit": found.record.commit,
    }


def _relative(path: Path, project: Path) -> str:
    return str(path.resolve().relative_to(project.resolve()))


def _lines(row: dict[str, Any]) -> list[str]:
    lines = []
    for version in row["versions"]:
        pointing = sorted(alias for alias, at in row["aliases"].items() if at == version["version"])
        name = f"{version['name']}@{version['version']}"
        people = f"owner {version['owner']}, reviewer {version['reviewer']}"
        lines.append(
            f"{name:24} {', '.join(pointing):16} {version['commit'][:10]}  {people}".rstrip()
        )
    return lines
