"""What ends a command from outside: it unwinds as after Ctrl-C, so that its workers end and its state is kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal that ends the command."""


@contextmanager
def unwinding_by_signals() -> Iterator[Callable[[int], int]]:
    """Let SIGTERM and SIGHUP unwind what runs inside, as Ctrl-C does; a second one ends the process at once.

    A signal that is ignored (``nohup``) stays so. Of several processes that a launcher started, each may be waiting for
    another one, deep in a library that hears no signal: they end at once.

    Yields:
        Given an exit code, what the process ends with: 128 and the number of the signal, if there was one.
    """
    received: list[int] = []
    heard: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()
        raise Stopped

    def restore() -> None:
        for each in heard:
            signal.signal(each, signal.SIG_DFL)

    alone = os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread()
    for each in ENDING if alone else ():
        if signal.getsignal(each) is signal.SIG_DFL:
            heard.append(each)
            signal.signal(each, stop)
    try:
        yield lambda code: 128 + received[0] if received else code
    finally:
        restore()
