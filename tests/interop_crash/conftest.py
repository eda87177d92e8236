"""The same directories as in tests/backends."""

from tests.backends.conftest import backend, run_url

__all__ = ["backend", "run_url"]
