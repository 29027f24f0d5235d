"""Whose entries a call shares, and what is remembered of that."""

from proxy.access.base import Identity
from proxy.core.wire import Endpoint, Headers
from proxy.engine import plan
from proxy.engine.base import Call
from tests.unit.engine.kit import ScriptedForwarder


def _scope(query: str = "", headers: Headers = ()) -> str:
    call = Call(Endpoint.CHAT, "/chat/completions", query, headers, b"{}", Identity(), "req_1")
    request, _ = plan.cacheable_request(call, ScriptedForwarder())
    return request.scope


def test_B56_long_texts_of_clients_are_not_kept() -> None:
    plan._remembered_scope.cache_clear()
    short, long = _scope("v=1"), [_scope(f"{n}" * 1000) for n in range(10)]
    assert len({short, *long}) == 11
    assert [_scope(f"{n}" * 1000) for n in range(10)] == long
    assert plan._remembered_scope.cache_info().currsize == 1


def test_B19_of_an_account_header_sent_twice_the_order_counts() -> None:
    one, other = (b"openai-organization", b"a"), (b"openai-organization", b"b")
    assert _scope(headers=(one, other)) == _scope(headers=(one, other))
    assert _scope(headers=(one, other)) != _scope(headers=(other, one))
