"""Upstreams at addresses where clouds hand out credentials: refused unless the operator insists."""

from pathlib import Path

import pytest

from proxy.errors import SettingsError
from proxy.settings.load import load_settings
from proxy.settings.metadata import is_metadata_host


def settings(tmp_path: Path, base_url: str, more: str = "") -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(f"upstreams:\n  up:\n    base_url: '{base_url}'\n{more}")
    return file


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.169.254.", "169.254.170.2", "169.254.0.1"),
        *("2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "0251.0376.0251.0376", "169.16689662"),
        *("[fd00:ec2::254]", "[fd00:0ec2:0:0:0:0:0:254]", "[fe80::a9fe:a9fe]"),
        *("[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]"),
        *("[2002:a9fe:a9fe::1]", "[fd20:ce::254]", "100.100.100.200", "168.63.129.16"),
        *("metadata.google.internal", "Metadata.Google.Internal.", "metadata", "metadata.goog"),
        *("instance-data", "instance-data.ec2.internal"),
    ],
)
@pytest.mark.parametrize("form", ["http://{}/v1", "https://{}:8443/v1"])
def test_B69_a_metadata_address_is_refused_with_its_place(
    host: str, form: str, tmp_path: Path
) -> None:
    file = settings(tmp_path, form.format(host))

    with pytest.raises(SettingsError) as refused:
        load_settings(file, env={})

    (mistake,) = refused.value.mistakes
    assert "credentials" in str(mistake)
    assert f"{file}:3:" in str(mistake)
    insists = settings(tmp_path, form.format(host), "    allow_metadata_address: true\n")
    assert load_settings(insists, env={}).upstreams["up"].allow_metadata_address


@pytest.mark.parametrize(
    "host",
    [
        *("api.openai.com", "127.0.0.1", "10.0.0.1", "169.253.1.1", "metadata.example.com"),
        *("[::1]", "[fd00::254]", "localhost", "vllm", "metadata-api.internal", "1"),
    ],
)
def test_B69_other_addresses_are_taken(host: str, tmp_path: Path) -> None:
    assert load_settings(settings(tmp_path, f"http://{host}/v1"), env={}).upstreams.keys() == {"up"}
    assert not is_metadata_host(host.strip("[]"))
