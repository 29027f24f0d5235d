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
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, assert_never

from proxy.clock import Clock
from proxy.core.families import Family
from proxy.errors import SettingsError
from proxy.runtime import Settings
from proxy.runtime.certificates import check_certificates
from proxy.runtime.fixed import fixed_changes
from proxy.runtime.preload import preload
from proxy.workers.accepting import Crowd
from proxy.workers.alone import not_reloaded
from proxy.workers.exchange import Ledger, Question, Questions
from proxy.workers.link import settings_text
from proxy.workers.messages import Kind, Message, Topic, Unpacker, packed
from proxy.workers.roster import TICK_SECONDS, Act, Finish, Roster, Say, Send, Start
from proxy.workers.server import url_of
from proxy.workers.worker import Seat, run_worker

log = logging.getLogger("magic_proxy")

_WATCHED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_RECEIVE_BYTES: Final = 256 * 1024
# How long the others are waited for, whoever asks.
_ANSWER_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Worker:
    """A worker that was forked and has not been reaped."""

    number: int
    pid: int
    end: socket.socket
    unpacker: Unpacker = field(default_factory=Unpacker)
    unsent: bytearray = field(default_factory=bytearray)


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
            grace_seconds=settings.server.shutdown_grace_seconds,
        )
        self._crowd = Crowd(count)
        self._questions = Questions()
        self._ledger = Ledger()
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._next_tick = 0.0
        self._announced = False
        self._exit_code: int | None = None

    def run(self) -> int:
        """Start all workers, and watch until they are to stop and have."""
        self._watch_signals()
        preload(self._first)
        # What stands now is never looked at by the collector again: it stays shared.
        gc.collect()
        gc.freeze()
        while self._exit_code is None:
            now = self._clock.monotonic()
            if now >= self._next_tick:
                self._next_tick = now + TICK_SECONDS
                self._do(self._roster.tick(now))
            self._settle(self._questions.expired(now))
            for key, events in self._selector.select(self._pause()):
                if key.data is None:
                    self._take_signals()
                else:
                    self._exchange(key.data, events)
        signal.set_wakeup_fd(-1)
        return self._exit_code

    def _pause(self) -> float:
        until = min(self._next_tick, self._questions.next_until() or self._next_tick)
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
        for number in self._woken.recv(_RECEIVE_BYTES):
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
        self._receive(worker)  # its last words
        self._hang_up(worker)
        del self._workers[worker.number]
        self._crowd.away(worker.number)
        self._ledger.ended(worker.number)
        self._settle(self._questions.ended(worker.number))
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
        self._ask(Question(None, 0, Topic.RELOAD, set(), 0.0), settings_text(settings))

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
        ours.setblocking(False)  # noqa: FBT003  # as above
        worker = self._workers[number] = _Worker(number, pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, worker)
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
            for end in (ours, self._woken, self._waker, *(w.end for w in self._workers.values())):
                end.close()
            self._in_worker(seat.number)
            code = run_worker(seat)
        except Exception:  # boundary: the frames below are another process's
            log.exception("the worker failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    # Messages.

    def _exchange(self, worker: _Worker, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send(worker)
        if events & selectors.EVENT_READ:
            self._receive(worker)

    def _receive(self, worker: _Worker) -> None:
        while worker.end.fileno() >= 0:
            try:
                received = worker.end.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                received = b""
            if not received:  # it ends; that it has ended is told by a signal
                self._hang_up(worker)
                return
            for message in worker.unpacker.feed(received):
                self._take(worker, message)

    def _take(self, worker: _Worker, message: Message) -> None:
        self._roster.heard(worker.number)
        match message["kind"]:
            case Kind.READY:
                self._do(self._roster.ready(worker.number))
                self._announce()
            case Kind.BEAT:
                if "families" in message:
                    self._ledger.told(worker.number, message["families"])
            case Kind.ASK:
                topic, body = message["topic"], message["body"]
                if topic == Topic.METRICS:
                    self._ledger.told(worker.number, body)
                self._ask(Question(worker.number, message["id"], topic, set(), 0.0), body)
            case Kind.REPLY:
                asked_as, body = message["id"], message["body"]
                if message["topic"] == Topic.METRICS and body is not None:
                    self._ledger.told(worker.number, body)
                self._settle(self._questions.replied(asked_as, worker.number, body))
            case _:
                raise AssertionError(f"no such kind of message: {message['kind']}")

    def _announce(self) -> None:
        if self._roster.is_complete and not self._announced:
            self._announced = True
            for listener in self._listeners:
                log.info("listening on %s/v1", url_of(listener))

    def _ask(self, question: Question, body: Any) -> None:
        """Put a question to all workers but the one that asks."""
        question.waiting = {number for number in self._workers if number != question.asker}
        question.until = self._clock.monotonic() + _ANSWER_SECONDS
        asked = tuple(question.waiting)
        asked_as, settled = self._questions.put(question)
        for number in asked:
            self._say(
                self._workers[number],
                packed(Kind.ASK, {"id": asked_as, "topic": question.topic, "body": body}),
            )
        self._settle(settled)

    def _settle(self, settled: Sequence[Question]) -> None:
        for question in settled:
            if question.topic == Topic.METRICS:
                self._reply(question, [*self._ledger.reports(), self._own_report()])
            elif question.topic == Topic.RELOAD:
                self._told_reloaded(question)
            else:
                silent = bool(question.waiting) or None in question.replies.values()
                self._reply(question, not silent)

    def _told_reloaded(self, question: Question) -> None:
        failed = {number for number, reply in question.replies.items() if reply is None}
        for number in sorted(failed | question.waiting):
            log.warning("worker %d has not said yet that it took the settings over", number)
        log.info("settings reloaded")

    def _own_report(self) -> list[Any]:
        workers, restarts = "magic_proxy_workers", "magic_proxy_worker_restarts"
        serving, restarted = self._roster.serving, self._roster.restarts
        families = (
            Family(workers, "gauge", "Workers that serve.", {(workers, ()): serving}),
            Family(
                restarts,
                "counter",
                "Workers that took the place of one that had ended.",
                {(f"{restarts}_total", ()): restarted},
            ),
        )
        return [family.as_json() for family in families]

    def _reply(self, question: Question, body: Any) -> None:
        worker = self._workers.get(question.asker or 0)
        if worker is not None:
            self._say(worker, packed(Kind.REPLY, {"id": question.id, "body": body}))

    def _say(self, worker: _Worker, message: bytes) -> None:
        if worker.end.fileno() >= 0:
            worker.unsent += message
            self._send(worker)

    def _send(self, worker: _Worker) -> None:
        try:
            while worker.unsent:
                del worker.unsent[: worker.end.send(worker.unsent)]
        except BlockingIOError:
            pass
        except OSError:  # it ends
            worker.unsent.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0)
        if worker.end.fileno() >= 0 and self._selector.get_key(worker.end).events != events:
            self._selector.modify(worker.end, events, worker)

    def _hang_up(self, worker: _Worker) -> None:
        if worker.end.fileno() >= 0:
            self._selector.unregister(worker.end)
            worker.end.close()
