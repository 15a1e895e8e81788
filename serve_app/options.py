"""Options that every command of the command line has."""

from __future__ import annotations

from typing import Annotated

import typer

ProfileOption = Annotated[str, typer.Option(
    "--profile", help="Shipped profile or a YAML file; default $REELRAY_PROFILE, else laptop.", show_default=False)]
SetOption = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Change one setting, e.g. --set models.text_to_video=NAME. Repeatable.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]
