"""Which lean ways are taken: those that are switched on and fit the client that is here.

EVOKE_LEAN lists what is on, separated by commas: `transport`, `start`, `inputs`, `web`, or `off` for nothing. Whatever
does not fit (another release of the client, something in it that looks different) is left as it is officially.
"""

import os
import sys
from collections.abc import Callable

# The release whose inner parts these ways know.
CLIENT_VERSION = "1.6.4"
# The switch, and the address by which the platform is reached.
SWITCH = "EVOKE_LEAN"
SOCKET = "EVOKE_PLATFORM_SOCKET"


# The ways that were taken.
taken: list[str] = []


class Unfit(Exception):
    """The client looks different from what a lean way knows."""


def prepare() -> None:
    """Takes every way that is on and fits."""
    wanted = _wanted(os.environ.get(SWITCH, "off"))
    if not wanted:
        return
    try:
        from modal_version import __version__ as version
    except ImportError:
        # Without a client the entrypoint fails in its own words.
        return
    if version != CLIENT_VERSION:
        return
    for name, take in _ways().items():
        if name in wanted:
            _try(name, take)


def _ways() -> dict[str, Callable[[], None]]:
    """Every lean way by its name, in the order in which they build on each other."""

    def transport() -> None:
        from evoke_runtime.transport import replace_channel

        replace_channel(os.environ.get("MODAL_SERVER_URL", ""), os.environ.get(SOCKET, ""))

    def start() -> None:
        from evoke_runtime.start import say_hello_beside, stubs_on_first_use

        stubs_on_first_use()
        say_hello_beside()

    def inputs() -> None:
        from evoke_runtime.inputs import run_beside_the_client

        run_beside_the_client()

    def web() -> None:
        from evoke_runtime.web import serve_beside_the_inputs

        serve_beside_the_inputs()

    return {"transport": transport, "start": start, "inputs": inputs, "web": web}


def _wanted(switch: str) -> set[str]:
    words = {word.strip() for word in switch.split(",")} - {"", "off"}
    known = list(_ways())
    for word in sorted(words.difference(known)):
        print(f"{SWITCH}: there is no {word!r}; what can be on: {', '.join(known)}, or off", file=sys.stderr)
    return words.intersection(known)


def _try(name: str, take: Callable[[], None]) -> None:
    try:
        take()
        taken.append(name)
    except Exception as error:
        # The official way works; that it is taken is of interest to who looks for it.
        from modal.config import logger

        logger.debug(f"evoke: without the lean {name}: {error!r}")
