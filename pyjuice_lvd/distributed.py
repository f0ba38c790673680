"""The processes of torchrun: joined to share their work, and watched, so that none waits for one that is gone.

torchrun (`python -m torch.distributed.run`) starts the same program several times, on one machine or several, and tells
each process its number, how many there are, and where to meet. `torch.distributed` moves the data.
"""

from __future__ import annotations

import datetime
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.reduce import LostProcessError, Reducer, TorchReducer, current, using
from pyjuice_lvd.errors import InputError, LVDJuiceError
from pyjuice_lvd.machine import machine_cores

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

BEAT = 2.0
"""Seconds between two signs of life of a process."""
SILENCE = 20.0
"""Seconds without one, after which a process counts as lost, unless LVD_SILENCE says otherwise."""
_LONGEST_WAIT = datetime.timedelta(days=30)
"""A process may wait for a slow one as long as that is alive, which the signs of life tell."""
_MEETING = 600.0
"""Seconds that the start of the slowest process may take, from that of the first on."""
_PATIENCE = 20.0
"""Seconds after which a process that waits for others says so."""


class EndedError(LVDJuiceError):
    """The process was told to end: by torchrun, where another one has ended, or by whoever runs that."""


def joined_by_torchrun() -> bool:
    """Whether torchrun, or another launcher, started this process beside others.

    Raises InputError where what a launcher says of its processes, in `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and
    `MASTER_PORT`, is not complete.
    """
    if "RANK" not in os.environ:
        return False
    size = _number("WORLD_SIZE", 1, 2**31, "1")
    if size == 1:
        return False
    _number("RANK", 0, size)
    if not os.environ.get("MASTER_ADDR"):
        raise InputError(f"MASTER_ADDR: found nothing beside WORLD_SIZE={size}, wanted where the processes meet")
    _number("MASTER_PORT", 1, 2**16)
    return True


def _number(name: str, least: int, end: int, default: str = "") -> int:
    """Read an environment variable, an integer from `least` to less than `end`."""
    found = os.environ.get(name, default)
    if not found.isdecimal() or not least <= int(found) < end:
        raise InputError(f"{name}: found {found!r}, wanted an integer from {least} to {end - 1}")
    return int(found)


def restarted() -> bool:
    """Whether torchrun started the processes again, because some had failed (`--max-restarts`)."""
    return joined_by_torchrun() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def note(what: str) -> None:
    """Keep in mind, through all restarts, that these processes have done something."""
    if joined_by_torchrun():
        _store(every_start=True).set(what, "1")


def noted(what: str) -> bool:
    """Whether these processes have done something, before a restart or since."""
    return joined_by_torchrun() and bool(_store(every_start=True).check([what]))


_watch: _Watch | None = None


@contextmanager
def processes(*, start: bool = True) -> Iterator[Reducer]:
    """Join the processes that torchrun started: in the block they share what work they can, which gives the same model.

    A process that nobody started beside others is one, and nothing is loaded or changed. All must run the same program
    with the same arguments and data; the reducer that the block gets says which of them this is (`rank`, of `size`).
    Unless `start` is False, Julia starts, as `start_together` has it.

    Raises
    ------
    LostProcessError
        Another process, or the connection to it, is gone. One that hangs, or can no longer be reached, ends all others
        after 20 seconds, with a line on stderr and exit status 1.
    EndedError
        torchrun ended this process (SIGTERM), as it does where another one has ended.

    """
    global _watch
    if not joined_by_torchrun():
        yield Reducer()
        return
    import torch
    import torch.distributed as dist

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def end(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise EndedError(
            f"process {rank} of {size}: ended by torchrun, because another process ended or the job was stopped; "
            "what was done is kept, and --resume goes on from it"
        )

    before = signal.signal(signal.SIGTERM, end)
    if torch.cuda.is_available():  # the processes of a machine share its GPUs out
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        _meet(rank, size)
        with using(TorchReducer()) as reducer:
            names = [name.decode() for name in reducer.gather_bytes(socket.gethostname().encode())]
            _watch = _Watch(rank, names)
            try:
                if start:
                    start_together()
                yield reducer
                reducer.gather_bytes(b"")  # none leaves before all are done
            finally:
                _watch.stop()
        dist.destroy_process_group()
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends this process, too: it has yet to say why it ends
        raise
    signal.signal(signal.SIGTERM, before)


def _store(*, host: bool = False, every_start: bool = False) -> Store:
    """Connect to the store that all meet at, or host it, in which this start of the processes has names of its own.

    torchrun keeps one store through all restarts. Where a process has written how it can be reached, others would read
    what one of the start before wrote under the same name, and wait for that. `every_start`: the names that all share.
    """
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    connecting = datetime.timedelta(minutes=1)
    store = dist.TCPStore(address, port, is_master=host, timeout=connecting, wait_for_workers=False)  # type: ignore[attr-defined]
    start = "all" if every_start else os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"lvd-juice/{start}", store)  # type: ignore[attr-defined]


def _meet(rank: int, size: int) -> None:
    """Make the default process group; raises LostProcessError where the others do not come in time."""
    import torch.distributed as dist

    # torchrun hosts the store, unless told not to; where something else started the processes, the first one does.
    host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    waiting = _Waiting(rank, size)
    try:
        if not host:
            waiting.until(_reachable)
        store = _store(host=host)
        store.set(f"here/{rank}", "1")
        waiting.until(lambda: None if store.check([f"here/{r}" for r in range(size)]) else _absent(store, size))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_LONGEST_WAIT)
    except RuntimeError as error:
        raise waiting.error(" ".join(str(error).split("\n")[0].split())) from error


def _reachable() -> str | None:
    """Say what is wrong with the meeting point, if anything is."""
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _absent(store: Store, size: int) -> str:
    absent = [str(rank) for rank in range(size) if not store.check([f"here/{rank}"])]
    return f"without process {', '.join(absent[:8])}{', ...' if len(absent) > 8 else ''}"


class _Waiting:
    """Waits for the meeting of the processes, with a line on stderr when that takes long, and an end."""

    def __init__(self, rank: int, size: int) -> None:
        self._who = f"process {rank} of {size}"
        self._where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._started, self._told = time.monotonic(), False

    def until(self, wrong: Callable[[], str | None]) -> None:
        """Wait until `wrong` finds nothing."""
        while (found := wrong()) is not None:
            waited = time.monotonic() - self._started
            if waited > _MEETING:
                raise self.error(f"{found}, for {_MEETING:g} s")
            if waited > _PATIENCE and not self._told:
                print(f"lvd-juice: {self._who}: waiting for the others at {self._where} ({found})", file=sys.stderr)
                self._told = True
            time.sleep(0.2)

    def error(self, reason: str) -> LostProcessError:
        """Say that there was no meeting."""
        return LostProcessError(f"{self._who}: cannot meet the others at {self._where} ({reason})")


def start_together(threads: int | None = None) -> julia.Info:
    """Start Julia with so many threads, else LVD_THREADS, else this process' share of the machine's cores.

    Of a machine's processes the first starts alone: what it compiles for later the others find. From here on processes
    watch each other: until Julia runs, it may keep all of a process' threads waiting.
    """
    if not joined_by_torchrun():
        return julia.start(threads=threads)
    if threads is None and not os.environ.get("LVD_THREADS"):
        threads = max(1, machine_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    reducer, first = current(), os.environ.get("LOCAL_RANK", "0") == "0"
    if first:
        started = julia.start(threads=threads)
    reducer.gather_bytes(b"")
    if not first:
        started = julia.start(threads=threads)
    reducer.gather_bytes(b"")
    if _watch is not None:
        _watch.start()
    return started


def _silence() -> float:
    found = os.environ.get("LVD_SILENCE", "")
    if not found:
        return SILENCE
    try:
        seconds = float(found)
    except ValueError:
        seconds = 0.0
    if not 2 * BEAT <= seconds < float("inf"):
        raise InputError(f"LVD_SILENCE: found {found!r}, wanted seconds, at least {2 * BEAT:g}")
    return seconds


class _Watch:
    """Signs of life in torchrun's store: a process that gives none is gone, and so is the store that cannot be asked.

    What waits for it cannot be told so: this process ends at once. Files are written aside and renamed: none is left
    half written.
    """

    def __init__(self, rank: int, hosts: list[str]) -> None:
        import torch.distributed as dist

        self._rank, self._hosts = rank, hosts
        self._meeting = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._silence = _silence()
        self._store = dist.PrefixStore("alive", _store())  # type: ignore[attr-defined]
        self._done = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._ask, self._look)]

    def start(self) -> None:
        """Begin to give signs of life, and to look for others'."""
        self._asked = time.monotonic()
        self._seen = [self._asked] * len(self._hosts)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End that."""
        self._done.set()

    def _ask(self) -> None:
        last, beat = [b""] * len(self._hosts), 0
        try:
            while not self._done.is_set():
                self._store.set(str(self._rank), str(beat))
                found = self._store.multi_get([str(rank) for rank in range(len(self._hosts))])
                self._asked = time.monotonic()
                for rank, value in enumerate(found):
                    if value != last[rank]:
                        self._seen[rank] = self._asked
                last, beat = found, beat + 1
                self._done.wait(BEAT)
        except Exception:  # the store is gone, or cannot be reached: `_look` says so when that has lasted
            pass

    def _look(self) -> None:
        woke = time.monotonic()
        while not self._done.wait(1):
            now = time.monotonic()
            if now - woke > self._silence / 2:  # this process itself, or its machine, stood still: it has not looked
                self._asked = now
                self._seen = [now] * len(self._hosts)
            woke = now
            if now - self._asked > self._silence:
                self._end(f"torchrun's meeting point {self._meeting} cannot be reached")
            lost = [rank for rank, seen in enumerate(self._seen) if now - seen > self._silence]
            if lost:
                who = ", ".join(f"process {rank} ({self._hosts[rank]})" for rank in lost)
                self._end(f"no sign of life of {who} for {self._silence:g} s")

    def _end(self, reason: str) -> None:
        if self._done.is_set():
            return
        line = f"lvd-juice: error: process {self._rank} of {len(self._hosts)}: {reason}"
        os.write(2, f"{line}; what was done is kept, and --resume goes on from it\n".encode())
        os._exit(1)
