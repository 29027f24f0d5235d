"""A call, read and derived: all that is known of it before any waiting."""

from functools import lru_cache
from typing import Final

from proxy.core.canonical import parse_body
from proxy.core.control import ClientControl, client_control
from proxy.core.decision import control_of
from proxy.core.fields import check_fields, item_count, model_name
from proxy.core.items import Items, derive_items
from proxy.core.key import Derivation, make_scope
from proxy.core.matching import RuleSet
from proxy.core.replay import Wanted, wanted_from
from proxy.core.request import CacheableRequest
from proxy.core.tags import tags_of
from proxy.core.values import value
from proxy.core.wire import Headers
from proxy.engine.base import Call
from proxy.upstream.base import Chain, Forwarder

# Clients choose query and headers: the memo is bounded in number and in length of texts.
_MEMO_LENGTH: Final = 256
# What is held of an answer that can't become an entry, to read its usage.
UNRECORDED_BYTES: Final = 1024 * 1024


@value(frozen=True, slots=True)
class Plan:
    """What the pure core makes of a call.

    `items` is how many vectors or choices it asks for, `batch` its inputs where there are several
    that are cached one by one; `key` and `canonical` of its derivation then name nothing that is
    stored. `generation` the number of the last purge
    that was known when it began, `tags` None where there are more than an entry may have.
    `keyed` are the request headers (lower case) that keep entries for a resource apart.
    """

    call: Call
    chain: Chain
    derivation: Derivation
    control: ClientControl
    wanted: Wanted
    items: int | None
    started: float
    batch: Items | None = None
    generation: int = 0
    given_tags: tuple[str, ...] | None = ()
    keyed: tuple[bytes, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that an entry for this call gets."""
        return self.given_tags or ()

    @property
    def tenant(self) -> str:
        """The client's tenant, "" for none."""
        return self.call.identity.tenant or ""

    @property
    def is_kept(self) -> bool:
        """Whether a good answer is stored, as far as that is known before there is one."""
        rule = self.derivation.rule
        lasts = rule is not None and rule.ttl_seconds > 0
        return lasts and not self.control.no_store and self.given_tags is not None

    @property
    def held_bytes(self) -> int:
        """How much of an answer that is no stream is read before anything is said of it."""
        rule = self.derivation.rule
        return UNRECORDED_BYTES if rule is None else rule.max_entry_bytes

    @property
    def renews_ids(self) -> bool:
        """True where each hit gets an id and a time of its own."""
        return self.derivation.rule is not None and self.derivation.rule.fresh_ids


def cacheable_request(call: Call, forwarder: Forwarder) -> tuple[CacheableRequest, Chain]:
    """The call as the core sees it, and where its model leads.

    Raises `MalformedBody` and `UnknownModel`.
    """
    body = parse_body(call.body)
    check_fields(call.endpoint, body.fields)
    chain = forwarder.resolve(model_name(body.fields) or "")
    request = CacheableRequest(
        endpoint=call.endpoint,
        model=chain.model,
        fields=body.fields,
        scope=scope_of(call, forwarder, chain),
        headers=call.headers,
        flaw=body.flaw,
        is_plain=body.is_plain,
    )
    return request, chain


def scope_of(call: Call, forwarder: Forwarder, chain: Chain) -> str:
    """Who may share the answer to a call along this chain."""
    uses_own = forwarder.uses_client_credentials(chain)
    return _scope(
        call.identity.tenant,
        call.identity.credential if uses_own else None,
        account_values(call.headers, forwarder.account_headers(chain)),
        call.query,
    )


def _scope(
    tenant: str | None,
    credential: str | None,
    account_headers: tuple[tuple[str, str], ...],
    query: str,
) -> str:
    length = len(query) + sum(len(name) + len(value) for name, value in account_headers)
    derived = _remembered_scope if length <= _MEMO_LENGTH else _new_scope
    return derived(tenant, credential, account_headers, query)


def _new_scope(
    tenant: str | None,
    credential: str | None,
    account_headers: tuple[tuple[str, str], ...],
    query: str,
) -> str:
    return make_scope(
        tenant=tenant, credential=credential, account_headers=account_headers, query=query
    )


# Few scopes make up most of the traffic, and each costs a hash.
_remembered_scope = lru_cache(maxsize=4096)(_new_scope)


def account_values(headers: Headers, names: tuple[bytes, ...]) -> tuple[tuple[str, str], ...]:
    """The headers that choose an account, as sent; lines of one name keep their order."""
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name in names
    )


def make_plan(
    call: Call,
    forwarder: Forwarder,
    rules: RuleSet,
    *,
    started: float,
    generation: int = 0,
    tags_header: bytes | None = None,
) -> Plan:
    """Read the body, resolve the model, derive the key. Raises `RequestError`."""
    request, chain = cacheable_request(call, forwarder)
    derivation, items = derive_items(request, rules)
    templates = derivation.rule.tags if derivation.rule is not None else ()
    tags: tuple[str, ...] | None = ()
    if templates or tags_header is not None:
        tags = tags_of(templates, request.fields, call.headers, tags_header)
    return Plan(
        call=call,
        chain=chain,
        derivation=derivation,
        control=control_of(derivation, client_control(call.headers)),
        wanted=wanted_from(call.endpoint, request.fields),
        items=item_count(call.endpoint, request.fields),
        started=started,
        batch=items if items is not None and len(items) > 1 else None,
        generation=generation,
        given_tags=tags,
    )
