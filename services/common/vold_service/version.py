"""`--version` of the services' programs."""

from typing import Any

import typer
from vold_proto.distribution import VERSION


def version_option(program: str) -> Any:
    """An option that prints the program's version and ends it."""

    def say(asked: bool) -> None:
        if asked:
            typer.echo(f"{program} {VERSION}")
            raise typer.Exit

    return typer.Option("--version", callback=say, is_eager=True, help="Print the version and exit.")
