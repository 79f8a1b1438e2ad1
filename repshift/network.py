"""Whether there is a network at all, asked once and quickly, so that nobody waits for retries without one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from repshift.errors import first_line

PATIENCE = 5.0  # seconds for finding a host and shaking hands, which slow networks do in one
PORTS = {"http": 80, "https": 443}


def why_unreachable(address: str) -> str | None:
    """Say why a host cannot be reached: it, or the proxy that the environment names for it.

    Args:
        address: With scheme, such as ``https://huggingface.co``.

    Returns:
        The reason; ``None`` if it answers.
    """
    wanted = urlsplit(address)
    proxy = getproxies().get(wanted.scheme)
    asked = wanted
    if proxy and wanted.hostname and not proxy_bypass(wanted.hostname):
        asked = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        place = (asked.hostname or "", asked.port or PORTS.get(asked.scheme, 443))
    except ValueError as error:
        return f"{asked.netloc} is no address: {error}"
    found: list[str | None] = []

    def ask() -> None:
        try:
            socket.create_connection(place, timeout=PATIENCE).close()
            found.append(None)
        except OSError as error:
            found.append(str(error))

    # resolvers have patience of their own, which cannot be set
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    why = found[0] if found else f"no answer in {PATIENCE:.0f} seconds"
    return None if why is None else f"{place[0]} cannot be reached: {why}"


@contextmanager
def hub_at_once() -> Iterator[str | None]:
    """Let Hugging Face's hub look into its cache only while it cannot be reached, instead of trying again and again.

    Yields:
        Why it cannot be reached; ``None`` if it can, or if ``HF_HUB_OFFLINE`` says that nobody should ask.
    """
    from huggingface_hub import constants

    why = None if constants.HF_HUB_OFFLINE else why_unreachable(constants.ENDPOINT)
    if why is None:
        yield None
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = False
        _forget_sessions()


def what_failed(error: BaseException, unreachable: str | None) -> str:
    """Say why something was not had: the network, if the hub found nothing in its cache, else the error itself."""
    if unreachable and type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return unreachable
    return f"{type(error).__name__}: {first_line(error)}"


def _forget_sessions() -> None:
    """Let old versions of the hub's client make new sessions, since theirs remember that they are offline."""
    from huggingface_hub import utils

    getattr(utils, "reset_sessions", lambda: None)()
