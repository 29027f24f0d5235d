"""nginx as the limit: `proxy_cache` keyed on the body, `proxy_pass`, and a fixed answer.

A process of our own with our own configuration, in a directory of its own; the system's service is
neither needed nor touched. It is set up to be as fast as it can be on one core: one worker,
connections kept alive on both sides, no log, the whole body held in memory, files kept open and
read without `sendfile` (these two take a fifth off a hit's CPU time).
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.machine import SERVER_CORE
from bench.processes import HOST, Running, free_port, program, started

# Where nginx says whether an answer came from its cache.
STATUS_HEADER = "x-cache-status"

_MAIN = """\
{user}daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  sendfile off;
  keepalive_requests 1000000000;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  {rest}
}}
"""
# Above client_body_buffer_size, $request_body is empty, and different requests get one answer.
_CACHE = """
  proxy_cache_path cache levels=1:2 keys_zone=bench:16m max_size=1g inactive=1h use_temp_path=off;
  open_file_cache max=1000 inactive=1h;
  open_file_cache_valid 1h;
  upstream behind {{ server {behind}; keepalive 32; }}
  server {{
    listen {at} backlog=4096;
    client_max_body_size 8m;
    client_body_buffer_size 4m;
    location / {{
      proxy_pass http://behind;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_cache bench;
      proxy_cache_methods POST;
      proxy_cache_key "$request_uri|$request_body|$http_authorization";
      proxy_cache_valid 200 1h;
      proxy_ignore_headers Cache-Control Expires Set-Cookie Vary;
      add_header {status} $upstream_cache_status;
    }}
  }}
"""
# As a proxy that keeps nothing: bodies go on as they come, in both directions.
_PASS = """
  upstream behind {{ server {behind}; keepalive 64; }}
  server {{
    listen {at} backlog=4096;
    client_max_body_size 8m;
    location / {{
      proxy_pass http://behind;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_request_buffering off;
      proxy_buffering off;
    }}
  }}
"""
_STATIC = """
  server {{
    listen {at} backlog=4096;
    default_type application/json;
    location / {{ return 200 {answer}; }}
  }}
"""


def cache_configuration(at: str, behind: str) -> str:
    """Listens at one address and caches what another one answers, by URI, body and credential."""
    return _whole(_CACHE.format(at=at, behind=behind, status=STATUS_HEADER))


def pass_configuration(at: str, behind: str) -> str:
    """Listens at one address and passes all on to another one."""
    return _whole(_PASS.format(at=at, behind=behind))


def static_configuration(at: str, answer: bytes) -> str:
    """Gives the same bytes to everybody. Raises ValueError where nginx would read a variable."""
    text = answer.decode()
    if "$" in text:
        raise ValueError("nginx has no way to write a dollar sign")
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return _whole(_STATIC.format(at=at, answer=f"'{escaped}'"))


@contextmanager
def nginx_cache(behind: Running) -> Iterator[Running]:
    """`proxy_cache` in front of an upstream."""
    port = free_port()
    with _serving(port, cache_configuration(f"{HOST}:{port}", f"{HOST}:{behind.port}")) as running:
        yield running


@contextmanager
def nginx_pass(behind: Running) -> Iterator[Running]:
    """`proxy_pass` in front of an upstream, without a cache."""
    port = free_port()
    with _serving(port, pass_configuration(f"{HOST}:{port}", f"{HOST}:{behind.port}")) as running:
        yield running


@contextmanager
def nginx_static(answer: bytes) -> Iterator[Running]:
    """`return 200` with these bytes."""
    port = free_port()
    with _serving(port, static_configuration(f"{HOST}:{port}", answer)) as running:
        yield running


@contextmanager
def _serving(port: int, configuration: str) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="magic-proxy-bench-") as directory:
        root = Path(directory)
        (root / "nginx.conf").write_text(configuration)
        command = [program("nginx"), "-p", directory, "-c", "nginx.conf", "-e", "stderr"]
        with started(command, port, core=SERVER_CORE, text=root / "stderr") as running:
            yield running


def _whole(rest: str) -> str:
    # Started by root, its worker would otherwise be another user, who may not write there.
    return _MAIN.format(user="user root;\n" if os.geteuid() == 0 else "", rest=rest)
