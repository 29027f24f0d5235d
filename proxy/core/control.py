"""What a client's `Cache-Control` asks for (RFC 9111 section 5.2.1, for POST answers)."""

from dataclasses import dataclass

from proxy.core.wire import Headers


@dataclass(frozen=True, slots=True)
class ClientControl:
    """The request directives that this cache obeys; `max_age_seconds` None is no limit."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_seconds: float | None = None

    @property
    def passes(self) -> bool:
        """Neither read nor write: `no-cache` and `no-store` together."""
        return self.no_cache and self.no_store


NO_CONTROL = ClientControl()


def directives(value: str) -> dict[str, str]:
    """The directives of a `Cache-Control` value, names in lower case, arguments unquoted."""
    found: dict[str, str] = {}
    for part in value.split(","):
        name, _, argument = part.partition("=")
        if name := name.strip().lower():
            found.setdefault(name, argument.strip().strip('"'))
    return found


def seconds(argument: str) -> float:
    """A delta-seconds argument; one that is not a number counts as 0 (RFC 9111 section 4.2.1)."""
    return float(argument) if argument.isascii() and argument.isdigit() else 0.0


def client_control(headers: Headers) -> ClientControl:
    """The control of a request; several header lines count as one list."""
    values = [value for name, value in headers if name == b"cache-control"]
    if not values:
        return NO_CONTROL
    found = directives(b",".join(values).decode("latin-1"))
    return ClientControl(
        no_cache="no-cache" in found,
        no_store="no-store" in found,
        only_if_cached="only-if-cached" in found,
        max_age_seconds=seconds(found["max-age"]) if "max-age" in found else None,
    )
