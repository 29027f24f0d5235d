"""Other gateways as peers, each with its cache, and in an environment of its own.

`scripts/bench-peer.sh` makes the environments under `.cache/bench`; nothing of them is a dependency
of the project. What cannot be had here is left out, and the report says so.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import yaml

from bench.machine import SERVER_CORE
from bench.processes import HOST, Running, free_port, started
from bench.question import Question

ROOT = Path(__file__).parents[1]
_SCRIPT = ROOT / "scripts" / "bench-peer.sh"
_PLACE = ROOT / ".cache" / "bench"
# LiteLLM takes 12 to 23 seconds.
_START_SECONDS = 120.0
_TENSORZERO = """\
[gateway]
observability.enabled = false
[models.gpt-4o]
routing = ["bench"]
[models.gpt-4o.providers.bench]
type = "openai"
model_name = "gpt-4o"
api_base = "{behind}/v1/"
api_key_location = "none"
"""
TENSORZERO_QUESTION = Question(
    path="/openai/v1/chat/completions",
    model="tensorzero::model_name::gpt-4o",
    extra='"tensorzero::cache_options":{"enabled":"on"},',
)
# Its value is the key of the entry.
LITELLM_HIT_HEADER = ("x-litellm-cache-key", "")


class Unavailable(Exception):
    """A peer cannot be had here; the text says why."""


@contextmanager
def litellm(behind: Running, store: Running | None) -> Iterator[Running]:
    """LiteLLM's proxy with its cache in Redis, or in memory where there is none.

    No keys, no database, one worker: what it does least for an answer. Raises Unavailable.
    """
    cached = {"type": "local"} if store is None else {"type": "redis", "host": HOST}
    if store is not None:
        cached |= {"port": str(store.port)}
    towards = {"model": "openai/gpt-4o", "api_base": f"{behind.url}/v1", "api_key": "sk-bench"}
    settings = {
        "model_list": [{"model_name": "gpt-4o", "litellm_params": towards}],
        "litellm_settings": {"cache": True, "cache_params": cached, "telemetry": False},
    }
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="magic-proxy-bench-") as directory:
        root = Path(directory)
        (root / "config.yaml").write_text(yaml.safe_dump(settings))
        program = str(_environment("litellm") / "bin" / "litellm")
        command = [program, "--config", "config.yaml", "--host", HOST, "--port", str(port)]
        env = {
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a list of prices
            "LITELLM_LOG": "ERROR",
        }
        with _up(command, port, root, env) as running:
            yield running


@contextmanager
def tensorzero(behind: Running, store: Running) -> Iterator[Running]:
    """TensorZero's gateway with its cache in Redis; it has none in memory. Raises Unavailable."""
    with tempfile.TemporaryDirectory(prefix="magic-proxy-bench-") as directory:
        root = Path(directory)
        (root / "gateway.toml").write_text(_TENSORZERO.format(behind=behind.url))
        program = str(_environment("tensorzero") / "bin" / "python")
        script = str(Path(__file__).with_name("tensorzero_gateway.py"))
        port = root / "port"
        command = [program, script, "gateway.toml", f"redis://{HOST}:{store.port}", str(port)]
        env = {"TENSORZERO_DISABLE_PSEUDONYMOUS_USAGE_ANALYTICS": "1"}
        with _up(command, port, root, env) as running:
            yield running


@contextmanager
def _up(command: list[str], port: int | Path, root: Path, env: dict[str, str]) -> Iterator[Running]:
    """A server in a directory of its own: some read `.env` files of where they are started."""
    text, env = root / "stderr", env | {"PYTHONPATH": ""}
    peer = started(
        command, port, core=SERVER_CORE, text=text, env=env, cwd=root, seconds=_START_SECONDS
    )
    with ExitStack() as stack:
        try:
            running = stack.enter_context(peer)
        except RuntimeError as why:
            print(why)
            raise Unavailable("it did not come up") from why
        yield running


def peer_version(name: str) -> str:
    """What was installed."""
    return (_PLACE / name / ".installed").read_text().strip().replace("==", " ")


@cache
def _environment(name: str) -> Path:
    """Where the packages of a peer are, installed if they are not. Raises Unavailable."""
    made = subprocess.run([_SCRIPT, name, sys.executable], check=False)
    if made.returncode != 0:
        raise Unavailable(f"{_SCRIPT.name} {name} failed")
    return _PLACE / name
