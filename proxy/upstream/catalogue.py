"""The upstreams as reads of resources see them: with one list of models, where that is merged."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote, unquote

import orjson

from proxy.core.catalogue import Listing, Model, merged_list, model_object, models_in
from proxy.core.coding import UnreadableCoding, decoder
from proxy.core.resources import PARTIAL
from proxy.core.trailers import Trailers
from proxy.core.wire import Headers, header
from proxy.errors import CircuitOpen, UpstreamError, UpstreamProtocolError, UpstreamTimeout
from proxy.upstream.base import Chain, Exchange, Forwarder, Outgoing, Profile, UpstreamResponse

_LIST: Final = "/models"
_LONGEST_BODY: Final = 8 * 1024 * 1024
_OK: Final = 200
# For upstreams whose lists only add to what is listed here: people wait for this list, and one that
# hangs must not hold it for as long as a completion may take.
_OTHERS_SECONDS: Final = 5.0
# It has no list, or tells of no single model: what is listed here stands all the same.
_NO_LIST: Final = frozenset({404, 405})
_ABOUT_THE_FORM: Final = frozenset({*PARTIAL, b"accept", b"accept-encoding"})


class Catalogue:
    """A `ResourceForwarder`; without a `listing` all goes to the default upstream unchanged.

    The merged list needs the list of the upstream that it is open to: what that answers instead,
    such as that it does not know the credential, is the answer. Lists of others add what they tell
    of the models named here, if they come within `others_seconds`; a list that lacks one of them is
    marked as a fallback, and so is not kept for long.

    A client's own credential goes to the default upstream alone, which it is meant for. Of others
    that would get it (they have no keys) no list is taken.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        listing: Listing | None,
        *,
        others_seconds: float = _OTHERS_SECONDS,
    ) -> None:
        self._forwarder = forwarder
        self._listing = listing
        self._others_seconds = others_seconds
        self._whom = Chain("", () if listing is None else tuple(self._asked(listing)))

    def merges(self, path: str) -> bool:
        """Whether the answer for this path, after the API root, is made here."""
        return self._listing is not None and (path == _LIST or _model_id(path) is not None)

    def chain(self, path: str) -> Chain:
        """Whom a read of this path asks. Raises `UnknownModel` where the list is closed."""
        if self._listing is None or not self.merges(path):
            return self._forwarder.resolve(None)
        if path == _LIST:
            return self._whom
        chain = self._forwarder.resolve(_model_id(path))
        return Chain(chain.model, chain.profiles[:1])

    async def send(self, chain: Chain, outgoing: Outgoing) -> Exchange:
        """Read from the upstreams of a chain that this gave. Raises `UpstreamError`."""
        if self._listing is None or not self.merges(outgoing.path):
            return await self._forwarder.send(chain, outgoing)
        if outgoing.path == _LIST:
            return await self._list(self._listing, chain, outgoing)
        return await self._model(chain, outgoing)

    def resolve(self, model: str | None) -> Chain:
        """As the upstreams themselves."""
        return self._forwarder.resolve(model)

    def spared(self, chain: Chain) -> CircuitOpen | None:
        """As the upstreams themselves."""
        return self._forwarder.spared(chain)

    def account_headers(self, chain: Chain) -> tuple[bytes, ...]:
        """As the upstreams themselves."""
        return self._forwarder.account_headers(chain)

    def uses_client_credentials(self, chain: Chain) -> bool:
        """As the upstreams themselves."""
        return self._forwarder.uses_client_credentials(chain)

    def max_batch(self, chain: Chain) -> int | None:
        """As the upstreams themselves."""
        return self._forwarder.max_batch(chain)

    def _asked(self, listing: Listing) -> Iterator[Profile]:
        """The upstreams whose lists are taken."""
        default = {profile.upstream for profile in self._forwarder.resolve(None).profiles}
        for name in listing.upstreams:
            profile = Profile(name=name, upstream=name)
            gets_credential = self._forwarder.uses_client_credentials(Chain("", (profile,)))
            if name in default or not gets_credential:
                yield profile

    async def _list(self, listing: Listing, chain: Chain, outgoing: Outgoing) -> Exchange:
        asked = _plain(outgoing)
        told = await asyncio.gather(
            *(
                self._models(profile, asked, is_needed=profile.upstream == listing.open_to)
                for profile in chain.profiles
            )
        )
        by_upstream = {
            profile.upstream: each for profile, each in zip(chain.profiles, told, strict=True)
        }
        needed = by_upstream.get(listing.open_to or "")
        if needed is not None and needed.models is None:
            return needed.answer()
        lists = {name: each.models for name, each in by_upstream.items() if each.models}
        body = merged_list(listing, lists)
        is_partial = any(each.models is None for each in told)
        answered = next((each.exchange for each in told if each.exchange is not None), None)
        if answered is None:  # nobody was needed
            upstream = chain.profiles[0].upstream if chain.profiles else ""
            answered = Exchange(_composed(b""), upstream, upstream)
        composed = _composed(body, *(each.exchange for each in told))
        return replace(answered, response=composed, fallback=is_partial)

    async def _models(self, profile: Profile, outgoing: Outgoing, *, is_needed: bool) -> "_Told":
        """What an upstream tells: no models where it has no list."""
        try:
            async with asyncio.timeout(None if is_needed else self._others_seconds):
                exchange = await self._forwarder.send(Chain("", (profile,)), outgoing)
                exchange, body = await _read(exchange)
        except UpstreamError as error:
            return _Told(error=error)
        except TimeoutError:
            return _Told(error=UpstreamTimeout("The upstream's list of models took too long."))
        if exchange.response.status in _NO_LIST:
            return _Told(exchange, [])
        return _Told(exchange, models_in(body) if exchange.response.status == _OK else None)

    async def _model(self, chain: Chain, outgoing: Outgoing) -> Exchange:
        """One model, asked for by the upstream's name and told under the client's."""
        model, name = chain.profiles[0].model, _model_id(outgoing.path)
        assert name is not None
        listed = self._listing is not None and any(
            named.name == name for named in self._listing.named
        )
        if model is None and not listed:
            return await self._forwarder.send(chain, outgoing)
        path = f"{_LIST}/{quote(model or name, safe='')}"
        exchange = await self._forwarder.send(chain, _plain(replace(outgoing, path=path)))
        exchange, body = await _read(exchange)
        known: Model | None = None
        if exchange.response.status == _OK:
            known = _object(body)
        elif not (listed and exchange.response.status in _NO_LIST):
            return exchange
        composed = _composed(orjson.dumps(model_object(name, known)), exchange)
        return replace(exchange, response=composed)


@dataclass(frozen=True, slots=True)
class _Told:
    """What came of asking one upstream for its list; `models` None where it gave none."""

    exchange: Exchange | None = None
    models: list[Model] | None = None
    error: UpstreamError | None = None

    def answer(self) -> Exchange:
        """What it said instead. Raises its error."""
        if self.exchange is None:
            raise self.error or UpstreamError("The upstream did not answer.")
        return self.exchange


def _model_id(path: str) -> str | None:
    name = path.removeprefix(f"{_LIST}/")
    return unquote(name) if name not in {path, ""} else None


def _plain(outgoing: Outgoing) -> Outgoing:
    """The same, for an answer that is read here: the whole of it, as JSON."""
    headers = [pair for pair in outgoing.headers if pair[0].lower() not in _ABOUT_THE_FORM]
    wanted = ((b"accept", b"application/json"), (b"accept-encoding", b"identity"))
    return replace(outgoing, headers=(*headers, *wanted))


def _object(body: bytes) -> Model:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise UpstreamProtocolError("The upstream's answer for a model is not a JSON object.")
    return answer


@dataclass(frozen=True, slots=True)
class _Whole:
    """An answer that is in memory."""

    status: int
    headers: Headers
    body: bytes
    trailers: Trailers | None = None

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        yield self.body

    async def aclose(self) -> None:
        """It holds nothing."""


def _composed(body: bytes, *sources: Exchange | None) -> UpstreamResponse:
    """An answer that is made here; it depends on what those depend on that it was made of."""
    headers = [pair for source in sources if source for pair in source.response.headers]
    varies = [pair for pair in headers if pair[0].lower() == b"vary"]
    return _Whole(_OK, ((b"content-type", b"application/json"), *varies), body)


async def _read(exchange: Exchange) -> tuple[Exchange, bytes]:
    """The exchange with its answer in memory, and the plain body. Raises `UpstreamError`."""
    response = exchange.response
    body = bytearray()
    try:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > _LONGEST_BODY:
                raise UpstreamProtocolError("The upstream's list of models is too long.")
    finally:
        await response.aclose()
    lower = tuple((name.lower(), value) for name, value in response.headers)
    coding = header(lower, b"content-encoding")
    held = _Whole(response.status, response.headers, bytes(body), response.trailers)
    whole = replace(exchange, response=held)
    if coding is None:
        return whole, bytes(body)
    try:
        plain = decoder(coding.decode("latin-1"), most_bytes=_LONGEST_BODY)
        return whole, plain.feed(bytes(body))
    except UnreadableCoding as error:
        raise UpstreamProtocolError("The upstream's answer is in a strange coding.") from error
