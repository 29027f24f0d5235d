"""Addresses where clouds tell a machine its own credentials; no API answers there."""

import ipaddress
import socket
from typing import Final

_NAMES: Final = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "metadata.tencentyun.com",
    }
)
_NETWORKS: Final = (
    # Link-local: AWS, Azure, Google and most others at .169.254, containers of AWS at .170.2.
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),  # AWS
    ipaddress.ip_network("fd20:ce::254/128"),  # Google
    ipaddress.ip_network("100.100.100.200/32"),  # Alibaba
    ipaddress.ip_network("192.0.0.192/32"),  # Oracle, of old
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's platform
)


def is_metadata_host(host: str) -> bool:
    """True for such an address in any spelling, and for the names that are known for one.

    Nothing is looked up: what a name leads to is its owner's matter.
    """
    name = host.lower().rstrip(".").partition("%")[0]
    if name in _NAMES or name.startswith("instance-data."):
        return True
    address = _address(name)
    if address is None:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or _translated(address) or address
    return any(address in network for network in _NETWORKS)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        pass
    try:
        # One number, hexadecimal, octal, fewer parts: what the system's resolver takes for one.
        return ipaddress.IPv4Address(socket.inet_aton(name))
    except (OSError, UnicodeError):
        return None


def _translated(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address behind a NAT64 (RFC 6052)."""
    if address not in ipaddress.ip_network("64:ff9b::/96"):
        return None
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
