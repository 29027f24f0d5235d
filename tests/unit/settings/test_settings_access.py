"""Keys of the pool are spent only by those whom the operator named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from proxy.errors import SettingsError
from proxy.settings.load import load_settings
from proxy.settings.models import Settings

POOL = {"a": {"base_url": "http://x", "api_keys": ["sk"]}}


def test_B71_keys_want_clients() -> None:
    with pytest.raises(ValidationError, match=r"say `clients: open`, or list clients"):
        Settings.model_validate({"upstreams": POOL})


def test_B71_keys_are_fine_with_listed_clients_on_any_address() -> None:
    settings = Settings.model_validate(
        {
            "server": {"host": "0.0.0.0"},
            "upstreams": POOL,
            "clients": [{"name": "a", "key_hashes": ["sha256:" + "0" * 64]}],
        }
    )
    assert settings.clients is not None
    assert not isinstance(settings.clients, str)
    assert settings.clients[0].tenant == "a"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_B71_open_is_fine_on_loopback(host: str) -> None:
    given = {"server": {"host": host}, "upstreams": POOL, "clients": "open"}
    assert Settings.model_validate(given).clients == "open"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.evil"])
def test_B71_open_is_refused_elsewhere_unless_insisted_on(host: str, tmp_path: Path) -> None:
    given = {"server": {"host": host}, "upstreams": POOL, "clients": "open"}
    with pytest.raises(ValidationError, match="insecure_open"):
        Settings.model_validate(given)
    flags = {"server.host": host, "clients": "open"}
    with pytest.raises(SettingsError, match=r"`open` needs .* \(set by the command line\)"):
        load_settings(None, {}, flags)
    assert load_settings(None, {}, flags | {"server.insecure_open": True}).server.host == host
