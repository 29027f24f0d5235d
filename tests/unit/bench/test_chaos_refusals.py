"""Whatever way an upstream of the chaos says how long, the proxy must read the same."""

import random

import pytest

from bench.chaos_refusals import refusal
from bench.chaos_rules import KEY_COOLDOWN_SECONDS, QUOTA_COOLDOWN_SECONDS
from bench.chaos_weather import KEY_TROUBLES, REFUSALS, Trouble
from proxy.upstream.classify import classify
from proxy.upstream.verdict import KeyLimited, KeyRejected

WALL = 1_800_000_000.25
DEFAULTS = {
    Trouble.UNSAID: KEY_COOLDOWN_SECONDS,
    Trouble.QUOTA: QUOTA_COOLDOWN_SECONDS,
    Trouble.LIMITED: None,
}


@pytest.mark.parametrize("trouble", KEY_TROUBLES)
def test_B62_the_proxy_reads_of_a_refusal_what_it_means(trouble: Trouble) -> None:
    chance = random.Random(1)
    spelled = set()
    for _ in range(200):
        answer = refusal(trouble, chance, WALL)
        headers = tuple((name.encode(), value.encode()) for name, value in answer.headers.items())
        spelled.add(tuple(sorted(answer.headers)))
        body = f'{{"error": {{"code": "{answer.code}"}}}}'.encode()
        verdict = classify(answer.status, headers, body, WALL)
        if trouble in REFUSALS:
            assert isinstance(verdict, KeyRejected)
            continue
        assert isinstance(verdict, KeyLimited)
        assert verdict.quota is (trouble is Trouble.QUOTA)
        seconds = DEFAULTS[trouble] if verdict.seconds is None else verdict.seconds
        assert seconds == pytest.approx(answer.rests, abs=0.01)
    assert len(spelled) >= (7 if trouble is Trouble.LIMITED else 1)
