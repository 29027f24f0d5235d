"""TensorZero's gateway in a process of its own; run by the interpreter that has the package.

    python bench/tensorzero_gateway.py CONFIG REDIS_URL PORT_FILE

Its wheel has the whole gateway, which the package itself starts by this private function to patch
OpenAI's client. It takes a free port, whatever the configuration says.
"""

import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import tensorzero  # type: ignore[import-not-found]  # it is not in the project's environment


def main() -> None:
    config, redis_url, port_file = sys.argv[1:]
    gateway = tensorzero._start_http_gateway(  # noqa: SLF001 - there is no public way
        config_file=config,
        clickhouse_url=None,
        postgres_url=None,
        valkey_url=redis_url,
        async_setup=False,
    )
    Path(port_file).write_text(str(urlsplit(gateway.base_url).port))
    threading.Event().wait()


if __name__ == "__main__":
    main()
