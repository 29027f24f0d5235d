"""The command line: `magic-proxy`."""

from typing import Annotated

import typer

from proxy import __version__
from proxy.cli import check, key_states, keys, purge, serve
from proxy.cli.options import JsonOutput
from proxy.cli.output import print_json

app = typer.Typer(
    name="magic-proxy",
    help="An OpenAI-compatible caching reverse proxy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    _: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """An OpenAI-compatible caching reverse proxy."""


app.command("serve")(serve.serve)
app.command("check")(check.check)
app.command("key")(keys.key)
app.command("explain")(keys.explain)
app.command("hash-key")(keys.hash_key_command)
app.command("keys")(key_states.keys)
app.command("purge")(purge.purge)
app.command("event")(purge.event)


@app.command("demo")
def demo() -> None:
    """Show hits and misses offline: OpenAI's SDK, the proxy, and a stand-in upstream."""
    from proxy.cli.demo import run_demo  # noqa: PLC0415  # only the demo needs the stand-in

    raise typer.Exit(run_demo())


@app.command("version")
def version(as_json: JsonOutput = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        print(__version__)


def main() -> None:
    """The entry point of the distribution."""
    app()
