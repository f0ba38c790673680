"""Julia takes signals over as it starts: they are put back as they were, but for those by which its threads meet."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Julia's threads stop for a garbage collection by a fault on a page of memory. SIGUSR2 stops one for a look at it, and
# ends the process where nobody handles it: it stays Julia's unless somebody had a use for it.
FAULT, LOOK = signal.SIGSEGV, signal.SIGUSR2
# By this, Julia hears that a process of its own has ended. It takes it over as it starts the first one, and not again.
CHILD = signal.SIGCHLD
# Those that Julia blocks in the thread that starts it, to wait for them in one of its own.
AWAITED = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT, signal.SIGUSR1}


class _Action(ctypes.Structure):
    """A `struct sigaction`: everywhere, the handler's address comes first."""

    _fields_ = (("handler", ctypes.c_void_p), ("rest", ctypes.c_byte * 248))


_sigaction = ctypes.CDLL(None).sigaction
_sigaction.argtypes = [ctypes.c_int, ctypes.POINTER(_Action), ctypes.POINTER(_Action)]


def _action(number: int) -> _Action:
    action = _Action()
    _sigaction(number, None, ctypes.byref(action))
    return action


@contextmanager
def kept() -> Iterator[None]:
    """Put the handlers and the mask of this thread back when the body is done, whoever set them and from what language.

    But for those that Julia goes on needing: see `Ours`.
    """
    not_ours = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, FAULT, CHILD}
    before = {number: _action(number) for number in not_ours}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        yield
    finally:
        for number, action in before.items():
            if _action(number).handler != action.handler and not (number == LOOK and not action.handler):
                _sigaction(number, ctypes.byref(action), None)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def heard() -> Iterator[None]:
    """Keep Ctrl-C Python's while the body starts Julia, whose own handler would hear it and do nothing.

    Julia sets its handler some 0.1 s before it is ready; a thread puts back the one from before within a millisecond.
    It runs where the start lets go of Python's lock: through libjulia, not through juliacall.
    """
    before, done = _action(signal.SIGINT), threading.Event()

    def watch() -> None:
        while not done.wait(0.0005):
            if _action(signal.SIGINT).handler != before.handler:
                _sigaction(signal.SIGINT, ctypes.byref(before), None)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def take_back() -> None:
    """Put back what Python knows of, where somebody else started Julia and nobody looked before."""
    for number in signal.valid_signals() - {FAULT}:
        handler = signal.getsignal(number)
        if handler is not None and (handler != signal.SIG_DFL or number in AWAITED):
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)


class Ours:
    """The handlers that stay Julia's: made before it starts, `taken` once it has.

    Others take them away: faulthandler, as it is switched on or off, puts its own or the default in their place. One is
    shared with whoever else has a use for it: while Julia is at work (`waiting`), it has its own of SIGCHLD.
    """

    def __init__(self) -> None:
        self._before = {number: _action(number) for number in (FAULT, LOOK, CHILD)}
        self._fault = _Action()
        self._child: _Action | None = None  # Julia's, once it has started processes

    def taken(self) -> None:
        """Look at what Julia has put in their place."""
        self._taken = {number: _action(number) for number in (FAULT, LOOK)}

    def stand(self) -> None:
        """Make sure that faults come to Julia: before each entry into it, so it takes a microsecond."""
        _sigaction(FAULT, None, self._fault)
        if self._fault.handler != self._taken[FAULT].handler:
            _sigaction(FAULT, self._taken[FAULT], None)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let Julia wait for its processes in the body, those too that it started before or that ended meanwhile.

        Where nobody else handles SIGCHLD it stays Julia's afterwards, else it is put back.
        """
        before = _action(CHILD)
        if self._child is not None and before.handler != self._child.handler:
            _sigaction(CHILD, self._child, None)
            signal.raise_signal(CHILD)  # for those whose end others heard: Julia looks after all of its own
        try:
            yield
        finally:
            now = _action(CHILD)
            if now.handler != before.handler:
                self._child = now if now.handler else None
                if before.handler:
                    _sigaction(CHILD, before, None)

    def give_back(self) -> None:
        """Put back what was there before, in a process that has no use for Julia's."""
        taken = {**self._taken, CHILD: self._child}
        for number, action in taken.items():
            if action is not None and _action(number).handler == action.handler:
                _sigaction(number, self._before[number], None)
