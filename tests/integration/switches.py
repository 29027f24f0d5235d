"""What a test run is told from outside.

`HOT_PATH=off pytest tests/integration` runs all servers without the hot path, but for those that a
test compares with others. What a client sees has to be the same.
"""

import os


def switched() -> dict[str, str]:
    """Environment variables for the proxies of this run."""
    off = os.environ.get("HOT_PATH", "").lower() == "off"
    return {"MAGIC_PROXY__SERVER__HOT_PATH_BYTES": "0"} if off else {}
