"""``workbench verify``: is this bundle, to the byte, what was released?"""

from __future__ import annotations

from pathlib import Path

import click

from workbench import digest, workspace
from workbench.commands.common import emit, json_option
from workbench.errors import VerificationError


@click.command()
@click.argument("bundle")
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key of whoever released it (PEM). Default: this workbench's own.",
)
@json_option
def verify(bundle: str, key: Path | None, as_json: bool) -> None:
    """Check a signed bundle, to the byte.

    BUNDLE is a released bundle's folder, or release/PREFIX for one that was released here. The
    exit status is 0 only if every file is there, unchanged, with none beside them, and signed
    with the key.
    """
    from workbench.release import keys, release, signing

    place = workspace.find()
    folder = Path(bundle)
    if folder.is_dir():
        held = signing.verify(folder, key or keys.public_key(place))
    elif bundle.startswith("release/"):
        held = release.verify_release(place, bundle, key)
    else:
        raise VerificationError(
            "no such bundle folder",
            where=folder.absolute(),
            hint=f"Released bundles lie below {place.root / 'releases'}",
        )
    result = {
        "verified": True,
        "bundle": str(held.folder),
        "key": held.key,
        "signature": held.signature,
        "files": held.files,
    }
    text = "\n".join(
        [
            f"verified: {held.folder}",
            *(f"  {digest.short(sha256)}  {name}" for name, sha256 in held.files.items()),
            f"signed with the key {digest.short(held.key)}…; nothing changed, missing or extra",
        ]
    )
    emit(result, as_json=as_json, text=text)
