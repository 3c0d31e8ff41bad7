"""Waits for a state, with a bound and a name, so that a failure says what did not come to be."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# How often a state is looked at where nothing tells of its change.
POLL_S = 0.05


def wait_until(look: Callable[[], T | None], what: str, timeout_s: float = 30.0) -> T:
    """Looks until `look` gives something true, and gives that. Nothing within the bound is a failure naming `what`."""
    until = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() >= until:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)
