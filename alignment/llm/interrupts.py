"""Ctrl-C: the first one asks a job to end well, the second one ends it at once."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[Callable[[], None]] = []


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Has the first SIGINT or SIGTERM within the block call `stop`.

    The second one ends the process as `kill` does, which a ledger survives. Blocks may be nested:
    one signal calls every `stop`. In a thread of its own a loop gets no signals.
    """
    outermost = not _asked and threading.current_thread() is threading.main_thread()
    loop = asyncio.get_running_loop()
    _asked.append(stop)
    if outermost:
        for number in _SIGNALS:
            loop.add_signal_handler(number, _ask, loop)
    try:
        yield
    finally:
        _asked.remove(stop)
        if outermost:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _ask(loop: asyncio.AbstractEventLoop) -> None:
    for number in _SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    logger.warning("ending: calls in flight may finish; interrupt again to end at once")
    for stop in _asked:
        stop()
