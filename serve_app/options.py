"""Options that every command of the command line has."""

from __future__ import annotations

from typing import Annotated

import typer

from configs.load import SERVER_VARIABLE

ProfileOption = Annotated[str, typer.Option(
    "--profile", help="Shipped profile or a YAML file; default $REELRAY_PROFILE, else laptop.", show_default=False)]
SetOption = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Change one setting, e.g. --set models.text_to_video=NAME. Repeatable.")]
ServerOption = Annotated[str, typer.Option(
    "--server", metavar="URL", envvar=SERVER_VARIABLE, show_default=False,
    help="Use the reelray server there, not this machine; the key that is sent is $REELRAY_API_KEY.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]
