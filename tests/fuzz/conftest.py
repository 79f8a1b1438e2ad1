"""Generated inputs: quick and always the same by default; ``pytest tests/fuzz --fuzz=1000`` draws so many anew."""

import signal
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings

QUICK, COMMANDS = 15, 4  # examples of each test; commands take longer


def pytest_configure(config):
    wanted = config.getoption("--fuzz")
    shared = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
    for name, quick in (("api", QUICK), ("commands", COMMANDS)):
        settings.register_profile(name, max_examples=wanted or quick, derandomize=not wanted, **shared)
    settings.load_profile("api")


@contextmanager
def _within(seconds):
    def ring(number, frame):
        raise TimeoutError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def within():
    """Fail what takes too long: a hang is a fault, too."""
    return _within
