"""One-shot signals between threads and event loops: how a test and the stand-in meet."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

# One lock for all: it is held for a few instructions, and a record of a request stays small.
_lock = threading.Lock()


class Signal:
    """Set once, from any thread; waited for by threads and by coroutines of any loop."""

    __slots__ = ("_callbacks", "_set", "name")

    def __init__(self, name: str = "signal") -> None:
        self.name = name
        self._set = False
        self._callbacks: tuple[Callable[[], None], ...] = ()

    def set(self) -> None:
        """Let everybody go on who waits, now and later."""
        with _lock:
            self._set = True
            callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float = 10.0) -> None:
        """Block this thread until it is set. Raises TimeoutError after `timeout` seconds."""
        happened = threading.Event()
        self.call(happened.set)
        if not happened.wait(timeout):
            self.forget(happened.set)
            raise TimeoutError(f"{self.name} did not happen within {timeout} s")

    async def awaited(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109 - the twin of `wait`
        """Wait on the running loop. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            await first_of(self)

    def call(self, callback: Callable[[], None]) -> None:
        """Call `callback` when set, in the thread that sets it; at once if it is set."""
        with _lock:
            if not self._set:
                self._callbacks = (*self._callbacks, callback)
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Take back what `call` was given."""
        with _lock:
            self._callbacks = tuple(each for each in self._callbacks if each != callback)


async def first_of(*signals: Signal) -> None:
    """Wait until one of `signals` is set."""
    loop = asyncio.get_running_loop()
    happened = asyncio.Event()

    def wake() -> None:
        # The loop may have been closed while another thread still held the signal.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(happened.set)

    for signal in signals:
        signal.call(wake)
    try:
        await happened.wait()
    finally:
        for signal in signals:
            signal.forget(wake)
