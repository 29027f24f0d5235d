"""The certificate files that settings name: read once before anything is built on them."""

import ssl
from collections.abc import Iterator
from pathlib import Path

from proxy.errors import Mistake, SettingsError
from proxy.settings.models import Settings


def check_certificates(settings: Settings) -> None:
    """Raises SettingsError for a `ca_file` that can't be used, as every upstream's TLS would."""
    mistakes = [
        Mistake(f"cannot use {file} as CA certificates: {why}", path)
        for path, file in _ca_files(settings)
        if (why := _trouble(file)) is not None
    ]
    if mistakes:
        raise SettingsError(mistakes)


def _ca_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    for name, upstream in settings.upstreams.items():
        if upstream.ca_file is not None:
            yield f"upstreams.{name}.ca_file", upstream.ca_file
    if settings.store.redis.ca_file is not None:
        yield "store.redis.ca_file", settings.store.redis.ca_file


def _trouble(file: Path) -> str | None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        return "there is no certificate in it (PEM)"
    except OSError as error:
        return error.strerror or type(error).__name__
    return None
