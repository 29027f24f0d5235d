"""Whose entries a call shares, and what is remembered of that."""

from proxy.access.base import Identity
from proxy.core.wire import Endpoint
from proxy.engine import plan
from proxy.engine.base import Call
from tests.unit.engine.kit import ScriptedForwarder


def _scope(query: str) -> str:
    call = Call(Endpoint.CHAT, "/chat/completions", query, (), b"{}", Identity(), "req_1")
    request, _ = plan.cacheable_request(call, ScriptedForwarder())
    return request.scope


def test_B56_long_texts_of_clients_are_not_kept() -> None:
    plan._remembered_scope.cache_clear()
    short, long = _scope("v=1"), [_scope(f"{n}" * 1000) for n in range(10)]
    assert len({short, *long}) == 11
    assert [_scope(f"{n}" * 1000) for n in range(10)] == long
    assert plan._remembered_scope.cache_info().currsize == 1
