"""Options that several commands share, and finding the settings file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from proxy.cli.output import fail
from proxy.errors import SettingsError
from proxy.settings.load import load_settings
from proxy.settings.models import Settings

CONFIG_VARIABLE = "MAGIC_PROXY_CONFIG"
_DEFAULT_FILE = Path("proxy_config.yaml")

ConfigFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar=CONFIG_VARIABLE,
        help="Settings file; default: proxy_config.yaml here, if there is one.",
    ),
]
JsonOutput: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_file(given: Path | None) -> Path | None:
    """The file to read: the one given, else `proxy_config.yaml` here, else none."""
    if given is not None:
        return given
    return _DEFAULT_FILE if _DEFAULT_FILE.is_file() else None


def settings_or_exit(path: Path | None, flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings; prints every mistake and exits with 2 where there are any."""
    try:
        return load_settings(path, os.environ, flags or {})
    except SettingsError as error:
        for mistake in error.mistakes:
            fail(str(mistake))
        raise typer.Exit(2) from None
