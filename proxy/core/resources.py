"""Resources: which GETs are cached, under which key, and what a write makes out of date.

Paths are raw, from `/v1` on, as the client sent them. They are compared by their segments, percent
signs decoded and empty ones passed over, so that no other spelling of a path gets past a purge.
docs/keys.md specifies the key; tests/vectors/resources.json holds frozen examples.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeAlias
from urllib.parse import unquote

from proxy.core.canonical import canonical_json
from proxy.core.key import SCHEME_VERSION, CacheKey, Derivation
from proxy.core.matching import RuleSet
from proxy.core.request import CacheableRequest
from proxy.core.rules import Rule
from proxy.core.scope import CREDENTIAL_HEADERS
from proxy.core.tags import normalized_tag
from proxy.core.wire import Endpoint, Headers, JsonValue

READS: Final = frozenset({"GET", "HEAD"})
WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# What makes a GET something other than a read of the whole resource.
PARTIAL: Final = (b"range", b"if-match", b"if-none-match", b"if-modified-since",
                  b"if-unmodified-since", b"if-range")  # fmt: skip
# What an answer may vary on although no key names it: codings are undone, only JSON is kept and
# given out, headers for browsers (CORS) are not kept, and who asks is in the scope.
_UNVARYING: Final = frozenset({b"accept", b"accept-encoding", b"origin", *CREDENTIAL_HEADERS,
                               b"access-control-request-headers",
                               b"access-control-request-method"})  # fmt: skip

# Paths are purged by the bucket that they fall into. Each purge of another name stays in the list
# of purges, which has a bound, and beyond it everything goes; buckets are few enough for it.
_BUCKETS: Final = 2048
# Tags are counted. What lies deeper is no resource.
_DEEPEST: Final = 16

ONE: Final = "*"
REST: Final = "**"
Segments: TypeAlias = tuple[str, ...]


def segments(path: str) -> Segments:
    """What a path consists of."""
    return tuple(segment for segment in unquote(path).split("/") if segment)


def split_target(target: str) -> tuple[str, str]:
    """A read's target: its path after the API root, and its query. Raises ValueError."""
    path, _, query = target.partition("?")
    if not path.startswith("/v1/"):
        raise ValueError(f"{target!r} is not what a GET asks for, such as /v1/models?limit=2")
    return path.removeprefix("/v1"), query


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A path in which `*` stands for one segment, and `**` at the end for one or more."""

    text: str
    parts: Segments

    @classmethod
    def parse(cls, text: str) -> "PathPattern":
        """Read a pattern; ValueError says what is wrong."""
        parts = tuple(text.split("/")[1:])
        if parts[:1] != ("v1",) or len(parts) < 2:  # noqa: PLR2004  # the root, and something in it
            raise ValueError("must begin with /v1/ and name a path, such as /v1/assistants/*")
        if not all(parts):
            raise ValueError("must not have empty segments")
        if any("?" in part or "#" in part or "%" in part for part in parts):
            raise ValueError("must be a plain path: no query, nothing percent-encoded")
        if REST in parts[:-1] or any(ONE in part and part not in {ONE, REST} for part in parts):
            raise ValueError("`*` stands for a whole segment, and `**` for all at the end")
        return cls(text, parts)

    def fits(self, path: Segments) -> bool:
        """Whether it stands for this path."""
        parts = self.parts
        if parts[-1] == REST:
            parts = parts[:-1]
            if len(path) <= len(parts):
                return False
            path = path[: len(parts)]
        return len(parts) == len(path) and all(
            part in {ONE, segment} for part, segment in zip(parts, path, strict=True)
        )

    def may_lie_under(self, path: Segments) -> bool:
        """Whether it may stand for something below this path."""
        is_deeper = self.parts[-1] == REST or len(self.parts) > len(path)
        return is_deeper and all(
            part in {ONE, REST, segment} for part, segment in zip(self.parts, path, strict=False)
        )


@dataclass(frozen=True, slots=True)
class Resource:
    """GETs that are cached under one rule; `vary` are request headers (lower case) in the key."""

    rule: Rule
    patterns: tuple[PathPattern, ...]
    vary: tuple[bytes, ...] = ()


class ResourceSet:
    """All resources, in file order."""

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        self._resources: Final = tuple(resources)
        self._patterns: Final = [pattern for each in self._resources for pattern in each.patterns]
        # The first segments below the root: all else is passed over without a closer look.
        self._firsts: Final = frozenset(pattern.parts[1] for pattern in self._patterns)

    def find(self, path: str) -> Resource | None:
        """What a path falls under: the first that fits."""
        found = segments(path)
        if len(found) > _DEEPEST:
            return None
        for resource in self._resources:
            if any(pattern.fits(found) for pattern in resource.patterns):
                return resource
        return None

    def outdated_by(self, method: str, path: str) -> tuple[str, ...]:
        """The tags of what a successful write makes out of date; none where nothing is cached.

        That is the resource, the collections above it, and, once it is deleted, what was below.
        """
        if method not in WRITES:
            return ()
        written = segments(path)
        if len(written) > _DEEPEST:
            return ()
        if len(written) > 1 and self._firsts.isdisjoint((ONE, REST, written[1])):
            return ()
        tags = [
            _at(above)
            for above in _and_above(written)
            if any(pattern.fits(above) for pattern in self._patterns)
        ]
        if method == "DELETE" and any(each.may_lie_under(written) for each in self._patterns):
            tags.append(_in(written))
        return tuple(dict.fromkeys(tags))


def accepts_json(headers: Headers) -> bool:
    """Whether a request takes JSON for an answer (RFC 9110 section 12.5.1)."""
    said = b",".join(value for name, value in headers if name == b"accept").decode("latin-1")
    if not said.strip():
        return True
    weights = dict(map(_weighted, said.split(",")))
    fitting = (weights.get(name) for name in ("application/json", "application/*", "*/*"))
    return next((weight for weight in fitting if weight is not None), 0.0) > 0.0


def varies_beyond(keyed: Collection[bytes], headers: Headers) -> bool:
    """Whether an answer with these headers may depend on a request header that is not `keyed`.

    Names are in lower case, but for those of `headers`.
    """
    said = b",".join(value for name, value in headers if name.lower() == b"vary").lower()
    named = {name.strip() for name in said.split(b",")} - {b""}
    return not named <= _UNVARYING.union(keyed)


def tags_of_path(path: str) -> tuple[str, ...]:
    """The tags of an entry for this path: one to purge it by, and those that writes go by."""
    read = segments(path)
    readable = normalized_tag("resource:/" + "/".join(read))
    return tuple(sorted({readable, _at(read), *(_in(above) for above in _and_above(read)[1:])}))


def derive_resource(
    resource: Resource, path: str, headers: Headers, scope: str, model: str = ""
) -> Derivation:
    """The key of a read of `path`, and the bytes that were hashed for it."""
    varying: list[JsonValue] = [
        [name.decode("latin-1"), value.decode("latin-1")]
        for name in sorted(set(resource.vary))
        for sent, value in headers
        if sent == name
    ]
    canonical = canonical_json({"path": path, "headers": varying})
    key = CacheKey(SCHEME_VERSION, Endpoint.RESOURCE, scope, sha256(canonical).hexdigest())
    request = CacheableRequest(Endpoint.RESOURCE, model, {}, scope, headers)
    return Derivation(request, _NO_RULES, resource.rule, key=key, canonical=canonical)


_NO_RULES: Final = RuleSet()


def _weighted(item: str) -> tuple[str, float]:
    """A media range and its weight; one that can't be read counts as none."""
    media, *parameters = (part.strip().lower() for part in item.split(";"))
    weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
    try:
        return media, float(weight)
    except ValueError:
        return media, 0.0


def _and_above(path: Segments) -> Sequence[Segments]:
    """The path, then each that it lies in."""
    return [path[:length] for length in range(len(path), 0, -1)]


def _at(path: Segments) -> str:
    return f"resource-at:{_bucket(path)}"


def _in(path: Segments) -> str:
    return f"resource-in:{_bucket(path)}"


def _bucket(path: Segments) -> int:
    digest = sha256("/".join(path).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") % _BUCKETS
