"""The process that watches: forks workers, keeps their number, and carries messages between them.

It has no event loop and no threads, so that it may fork at any time. Workers are forks of a process
that has imported everything: they start in a fraction of the time of a new interpreter, and share
its memory.
"""

import gc
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import ceil
from typing import Final, NoReturn, assert_never

from proxy.clock import Clock
from proxy.core.families import Family
from proxy.errors import SettingsError
from proxy.runtime import LONGEST_STOP_SECONDS, Settings
from proxy.runtime.certificates import check_certificates
from proxy.runtime.fixed import fixed_changes
from proxy.runtime.preload import preload
from proxy.workers.accepting import Crowd
from proxy.workers.alone import not_reloaded
from proxy.workers.line import Line
from proxy.workers.link import settings_text
from proxy.workers.messages import Kind
from proxy.workers.roster import TICK_SECONDS, Act, Finish, Roster, Say, Send, Start
from proxy.workers.server import url_of
from proxy.workers.switchboard import Switchboard
from proxy.workers.worker import Seat, run_worker

log = logging.getLogger("magic_proxy")

_WATCHED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_MANY_SIGNALS: Final = 4096


@dataclass(slots=True)
class _Worker:
    """A worker that was forked and has not been reaped."""

    number: int
    pid: int
    line: Line


class Supervisor:
    """`run` returns the exit code when all workers have ended.

    `read_settings` is called at SIGHUP, and raises SettingsError; `in_worker` is called in each
    worker, with its number, before it does anything.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[socket.socket],
        count: int,
        clock: Clock,
        *,
        read_settings: Callable[[], Settings],
        in_worker: Callable[[int], None],
    ) -> None:
        self._first = self._latest = settings
        self._listeners = listeners
        self._clock = clock
        self._read_settings = read_settings
        self._in_worker = in_worker
        self._roster = Roster(
            count,
            timeout_seconds=settings.server.worker_timeout_seconds,
            stop_seconds=ceil(settings.server.shutdown_grace_seconds) + LONGEST_STOP_SECONDS,
        )
        self._crowd = Crowd(count)
        self._switchboard = Switchboard(clock, self._counted)
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._next_tick = 0.0
        self._announced = False
        self._exit_code: int | None = None

    def run(self) -> int:
        """Start all workers, and watch until they are to stop and have.

        Raises SettingsError for files that can't be used.
        """
        check_certificates(self._first)
        self._watch_signals()
        preload(self._first)
        if self._first.admin.key_hashes:
            import_module("proxy.edge.framework")
        # What stands now is never looked at by the collector again: it stays shared.
        gc.collect()
        gc.freeze()
        while self._exit_code is None:
            now = self._clock.monotonic()
            if now >= self._next_tick:
                self._next_tick = now + TICK_SECONDS
                self._do(self._roster.tick(now))
            self._switchboard.expire(now)
            for key, events in self._selector.select(self._pause()):
                if key.data is None:
                    self._take_signals()
                elif (worker := self._workers.get(key.data)) is not None:
                    if events & selectors.EVENT_WRITE:
                        worker.line.send()
                    self._listen(worker)
        signal.set_wakeup_fd(-1)
        return self._exit_code

    def _pause(self) -> float:
        until = min(self._next_tick, self._switchboard.next_until() or self._next_tick)
        return max(until - self._clock.monotonic(), 0.0)

    # Signals.

    def _watch_signals(self) -> None:
        for end in (self._woken, self._waker):
            end.setblocking(False)  # noqa: FBT003  # the standard library's name for it
        for number in _WATCHED:
            signal.signal(number, lambda *_: None)  # it arrives as a byte
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def _take_signals(self) -> None:
        for number in self._woken.recv(_MANY_SIGNALS):
            match number:
                case signal.SIGCHLD:
                    self._reap()
                case signal.SIGHUP:
                    self._reload()
                case signal.SIGTERM | signal.SIGINT:
                    self._stop(signal.Signals(number))
                case _:
                    pass

    def _stop(self, by: signal.Signals) -> None:
        for listener in self._listeners:
            listener.close()
        self._do(self._roster.stop(self._clock.monotonic(), by=by))

    def _reap(self) -> None:
        """Take leave of all children that have ended: as process 1, also of others' orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = next((each for each in self._workers.values() if each.pid == pid), None)
            if worker is not None:
                self._take_leave(worker, os.waitstatus_to_exitcode(status))

    def _take_leave(self, worker: _Worker, code: int) -> None:
        self._listen(worker)  # its last words
        del self._workers[worker.number]
        self._crowd.away(worker.number)
        self._switchboard.unplug(worker.number)
        self._do(self._roster.ended(worker.number, code, self._clock.monotonic()))

    def _reload(self) -> None:
        if self._roster.is_stopping:
            return
        try:
            settings = self._read_settings()
            check_certificates(settings)
        except SettingsError as error:
            not_reloaded(error)
            return
        for change in fixed_changes(self._first, settings):
            log.warning("%s", change)
        self._latest = settings
        self._switchboard.reload(settings_text(settings), _reloaded)

    # What the roster decides.

    def _do(self, acts: Sequence[Act]) -> None:
        for act in acts:
            match act:
                case Start(number):
                    self._start(number)
                case Send(number, signum):
                    os.kill(self._workers[number].pid, signum)
                case Say(level, text):
                    log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
                case Finish(code):
                    self._exit_code = code
                case _:
                    assert_never(act)

    def _start(self, number: int) -> None:
        try:
            ours, theirs = socket.socketpair()
            pid = self._fork(number, ours, theirs)
        except OSError as error:  # too many files or processes
            log.error("no worker can be started: %s", error)  # noqa: TRY400  # it says enough
            self._do(self._roster.ended(number, 1, self._clock.monotonic()))
            return
        theirs.close()
        line = Line(ours, self._selector, number)
        self._workers[number] = _Worker(number, pid, line)
        self._switchboard.plug(number, line)
        self._roster.started(number, pid, self._clock.monotonic())

    def _fork(self, number: int, ours: socket.socket, theirs: socket.socket) -> int:
        """The pid of the new worker."""
        sys.stdout.flush()
        sys.stderr.flush()
        # One that is to stop as soon as it is there must not take that for the supervisor's.
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        try:
            pid = os.fork()
            if pid == 0:
                crowd, first, latest = self._crowd, self._first, self._latest
                self._become(Seat(number, theirs, self._listeners, crowd, first, latest), ours)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        return pid

    def _become(self, seat: Seat, ours: socket.socket) -> NoReturn:
        """Go on as a worker: with nothing that is the supervisor's, and never back into it."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _WATCHED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            # A worker that held another's end would hide from it that the supervisor is gone.
            self._selector.close()
            others = [worker.line.end for worker in self._workers.values()]
            for end in (ours, self._woken, self._waker, *others):
                end.close()
            self._in_worker(seat.number)
            code = run_worker(seat)
        except Exception:  # boundary: the frames below are another process's
            log.exception("the worker failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    # What workers say.

    def _listen(self, worker: _Worker) -> None:
        for message in worker.line.received():
            self._roster.heard(worker.number)
            if message["kind"] == Kind.READY:
                self._do(self._roster.ready(worker.number))
                self._announce()
            self._switchboard.take(worker.number, message)

    def _announce(self) -> None:
        if self._roster.is_complete and not self._announced:
            self._announced = True
            for listener in self._listeners:
                log.info("listening on %s/v1", url_of(listener))

    def _counted(self) -> list[Family]:
        workers, restarts = "magic_proxy_workers", "magic_proxy_worker_restarts"
        return [
            Family(workers, "gauge", "Workers that serve.", {(workers, ()): self._roster.serving}),
            Family(
                restarts,
                "counter",
                "Workers that took the place of one that had ended.",
                {(f"{restarts}_total", ()): self._roster.restarts},
            ),
        ]


def _reloaded(unconfirmed: set[int]) -> None:
    for number in sorted(unconfirmed):
        log.warning("worker %d has not said yet that it took the settings over", number)
    log.info("settings reloaded")
