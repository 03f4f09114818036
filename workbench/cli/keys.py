"""`workbench keys`: which key signs what; new keys, and keys that no longer count."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from workbench.cli.common import json_option, print_result
from workbench.core import digest
from workbench.core.types import Json
from workbench.core.workspace import find_workspace

if TYPE_CHECKING:
    from workbench.core.keyring import Role

__all__ = ()

_ROLES = ("release", "rollout", "labels", "log", "root")
_by_option = click.option("--by", help="Who does it.  [default: the current user]")


@click.group()
def keys() -> None:
    """List, rotate and revoke the keys that sign releases, rollouts, labels and the audit log."""


@keys.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """List every key with its role and state, oldest first, and where its public half is."""
    from workbench.core.keyring import read_keyring, signing_key

    workspace = find_workspace()
    signing_key(workspace)
    rows = [{**one.model_dump(), "state": one.state} for one in read_keyring(workspace).keys]
    lines = [
        f"{row['role']:<8} {digest.shorten(row['key'])}  {row['state']:<8} {_dates(row)}".rstrip()
        for row in rows
    ]
    lines.append(f"public keys: {workspace.root / 'keys'}, {workspace.secrets}/*.pub.pem")
    print_result({"keys": rows}, as_json=as_json, text="\n".join(lines))


@keys.command("rotate")
@click.argument("role", type=click.Choice(_ROLES))
@click.option(
    "--days", type=click.IntRange(1), default=730, show_default=True, help="Days until it expires."
)
@_by_option
@json_option
def rotate(role: str, days: int, by: str | None, as_json: bool) -> None:
    """Give ROLE a new key. What the one before signed stays valid.

    Give the new public key to vehicles and to whoever verifies.
    """
    from workbench.audit import keys as audit_keys

    entry = audit_keys.rotate(find_workspace(), cast("Role", role), by=by, days=days)
    text = f"{role} signs with key {digest.shorten(entry.key)}… until {entry.expires}"
    print_result({"key": entry.model_dump()}, as_json=as_json, text=text)


@keys.command("revoke")
@click.argument("key")
@click.option("--reason", required=True, help="Why, in a sentence.")
@_by_option
@json_option
def revoke(key: str, reason: str, by: str | None, as_json: bool) -> None:
    """Revoke KEY, given by the first digits of its fingerprint.

    Nothing that it signed counts from now on, whenever it was signed: release again what should
    stay. Where it was in use, a new key takes over.
    """
    from workbench.audit import keys as audit_keys
    from workbench.pipeline.promote import current_user
    from workbench.records.releases import registered_releases, release_models

    workspace = find_workspace()
    made = audit_keys.revoke(workspace, key, by=by or current_user(), reason=reason)
    found = {model: registered_releases(workspace, model) for model in release_models(workspace)}
    champions = {
        model: (named.version if (named := one.aliases.get("champion")) else None)
        for model, one in found.items()
    }
    lines = [f"{one.role} signs with key {digest.shorten(one.key)}… now" for one in made]
    lines += [
        f"{model}: {len(one.refused)} of {len(one.refused) + len(one.releases)} releases do not "
        f"count, champion is {champions[model] or 'none'}"
        for model, one in found.items()
        if one.refused
    ]
    result: Json = {"new": [one.model_dump() for one in made], "champions": champions}
    print_result(result, as_json=as_json, text="\n".join(["revoked", *lines]))


def _dates(row: Json) -> str:
    words = [f"{word} {row[word]}" for word in ("expires", "retired", "revoked") if row[word]]
    return ", ".join(words) + (f" by {row['by']}: {row['reason']}" if row["revoked"] else "")
