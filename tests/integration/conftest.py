"""Real servers for the tests: the stand-in upstream, proxies in front of it, Redis, SDK clients."""

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from proxy.standin import RunningStandIn, start_standin
from tests.integration.ageing import Ages
from tests.integration.contract import Asker, Site
from tests.integration.paths import NAMES, Way, Ways
from tests.integration.redis_server import RedisServer, redis_server
from tests.integration.servers import ProxyFactory, RunningProxy

NewClient = Callable[..., openai.OpenAI]
NewAsker = Callable[..., Asker]


@pytest.fixture
def standin() -> Iterator[RunningStandIn]:
    """The upstream; `standin.app` is what scripts it and what it saw."""
    with start_standin() as running:
        yield running


@pytest.fixture
def proxy(standin: RunningStandIn, tmp_path: Path) -> Iterator[ProxyFactory]:
    """Starts proxies in front of the stand-in: `proxy()`, `proxy({...})`, `proxy("yaml: text")`."""
    factory = ProxyFactory(standin.base_url, tmp_path)
    yield factory
    factory.stop()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A real Redis, empty, without persistence."""
    with redis_server() as running:
        yield running


@pytest.fixture
def client() -> Iterator[NewClient]:
    """Makes OpenAI SDK clients of a proxy; they try once, so that tests see every answer."""
    made: list[openai.OpenAI] = []

    def new(proxy: RunningProxy, api_key: str = "sk-test") -> openai.OpenAI:
        made.append(
            openai.OpenAI(base_url=proxy.base_url, api_key=api_key, max_retries=0, timeout=30.0)
        )
        return made[-1]

    yield new
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Servers that all tests of a module share."""
    with start_standin() as running:
        factory = ProxyFactory(running.base_url, tmp_path_factory.mktemp("site"))
        yield Site(running, factory)
        factory.stop()


@pytest.fixture
def site(whole_site: Site) -> Site:
    """The shared servers, with a stand-in that has seen nothing and has no scripts."""
    whole_site.standin.app.reset()
    return whole_site


@pytest.fixture
def ask(site: Site) -> NewAsker:
    """Makes clients of shared proxies: `ask()`, `ask({...})`; each has entries of its own."""
    return site.asker


@pytest.fixture(scope="module")
def ages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ages]:
    """Proxies whose clock the test moves, kept for all tests of a module, and their upstream."""
    with start_standin() as standin, Ages(standin, tmp_path_factory.mktemp("ages")) as running:
        yield running


@pytest.fixture
def ageing(ages: Ages) -> Iterator[Ages]:
    """Makes clients of these proxies; the stand-in has seen nothing and has no scripts."""
    ages.begin()
    yield ages
    ages.end()


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """Kept for all tests of a module."""
    made = Ways(tmp_path_factory.mktemp("ways"))
    yield made
    made.stop()


@pytest.fixture(params=NAMES)
def way(request: pytest.FixtureRequest, ways: Ways) -> Way:
    """Each way once; the upstream has seen nothing."""
    return ways(request.param)
