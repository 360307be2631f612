"""`--version` of the services' programs."""

from typing import Any

import typer
from vold_proto.distribution import VERSION


def version_option(program: str) -> Any:
    """A `--version` option that prints the version and exits."""

    def print_version(requested: bool) -> None:
        if requested:
            typer.echo(f"{program} {VERSION}")
            raise typer.Exit

    return typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
