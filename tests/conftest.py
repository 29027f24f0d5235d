"""Fixtures that every test may use."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# What is slow on a busy machine is not wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A directory without certificates: nobody outside is asked, and to read all authorities of the
# system takes each client that a test makes 20 ms.
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
os.environ.pop("SSL_CERT_FILE", None)


def pytest_collection_finish() -> None:
    """Let the collector leave all that was imported alone: 0.2 s for each test that calls it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio: the proxy runs on nothing else."""
    return "asyncio"
