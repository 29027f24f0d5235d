"""Proxies for the tests: each in a thread of its own, on a free port, with settings of its own."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from proxy.edge.app import create_app
from proxy.settings.load import load_settings
from proxy.standin import RunningServer, serve_in_thread
from proxy.workers.server import server_config
from tests.integration.switches import switched


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the members of `over` in their places; mappings are merged, the rest replaced."""
    result = deepcopy(dict(base))
    for name, value in over.items():
        old = result.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[name] = merged(result[name], value) if both else deepcopy(value)
    return result


class RunningProxy:
    """A proxy in a thread. It keeps its port and its files across `restart`."""

    def __init__(self, settings: Mapping[str, Any], directory: Path) -> None:
        self.settings = dict(settings)
        self._file = directory / "proxy_config.yaml"
        self._server: RunningServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        assert self._port, "not started"
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """What the SDK takes as its base URL."""
        return f"{self.url}/v1"

    def start(self) -> None:
        """Load the settings from a file and serve, as the command line does."""
        assert self._server is None, "already started"
        self._file.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        settings = load_settings(self._file, env=switched())
        config = server_config(create_app(settings), settings)
        self._server = serve_in_thread(config, port=self._port)
        self._port = self._server.port

    def stop(self) -> None:
        """End in order: everything that was stored is in its store afterwards."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def restart(self) -> None:
        """A new process would see what this one sees: only the files are left."""
        self.stop()
        self.start()


class ProxyFactory:
    """Starts proxies in front of one upstream, and stops them all at the end of a test."""

    def __init__(self, upstream_url: str, directory: Path) -> None:
        self._upstream_url = upstream_url
        self._directory = directory
        self._started: list[RunningProxy] = []

    def __call__(self, overrides: Mapping[str, Any] | str | None = None) -> RunningProxy:
        """Start one more; `overrides` (a mapping, or YAML text) go over the defaults.

        Each has a disk store of its own, unless `store.disk.path` names another's.
        """
        directory = self._directory / f"proxy-{len(self._started)}"
        directory.mkdir(parents=True)
        over = yaml.safe_load(overrides) if isinstance(overrides, str) else overrides
        running = RunningProxy(merged(self._defaults(directory), over or {}), directory)
        self._started.append(running)
        running.start()
        return running

    def _defaults(self, directory: Path) -> dict[str, Any]:
        return {
            "server": {"host": "127.0.0.1", "port": 0, "access_log": False},
            "upstreams": {"openai": {"base_url": self._upstream_url}},
            "store": {
                "tiers": ["memory", "disk"],
                "disk": {"path": str(directory / "cache.sqlite3")},
            },
        }

    def stop(self) -> None:
        """Stop all, the last one first."""
        while self._started:
            self._started.pop().stop()
