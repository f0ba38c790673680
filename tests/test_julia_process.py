"""The process that Julia shares with Python: threads, signals, Ctrl-C, forks, its end, and libraries beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import python

STRESS = """
from pyjuice_lvd import julia
from pyjuice_lvd.errors import InputError
import numpy as np

julia.start()
{late}
x = np.arange(300_000.0)
seen = julia.evaluate('''
    function stress(x)
        sums = zeros(64)
        Threads.@threads for i in 1:64
            sums[i] = sum(copy(x))      # allocates: the threads meet in garbage collections
        end
        try
            Threads.@threads for i in 1:4; throw(ArgumentError("from a thread")); end
        catch
        end
        return sums
    end
    Threads.nthreads()
''')
assert seen == 2, seen
stress = julia.evaluate("stress")
for _ in range(3):
    sums = julia.call("Base.invokelatest", stress, x)
    assert (sums == x.sum()).all()
    product = torch.ones(200, 200) @ torch.ones(200, 200)
    assert float(product[0, 0]) == 200.0
    assert torch.from_numpy(sums).sum() == sums.sum()
print("done")
"""


@pytest.mark.parametrize("first", ["torch", "julia"])
def test_two_threads_and_exceptions_beside_pytorch(first: str) -> None:
    late = STRESS.format(late="import torch" if first == "julia" else "")
    ran = python(late if first == "julia" else "import torch\n" + late, LVD_THREADS="2")
    assert ran.stdout == "done\n", ran.stderr


POOLS = """
from pyjuice_lvd import julia

print(julia.start(threads=2).threads)
for code in (
    "Threads.nthreads()",
    "isdefined(Threads, :threadpool) ? string(Threads.threadpool()) : \\"default\\"",  # of this thread, the main one
    "isdefined(Threads, :threadpoolsize) ? Threads.threadpoolsize(:interactive) : 0",
    "ids = zeros(Int, 64); Threads.@threads for i in 1:64; ids[i] = Threads.threadid(); end; string(sort(unique(ids)))",
):
    print(julia.evaluate(code))
"""


def test_the_main_thread_is_one_of_those_that_work() -> None:
    # What Julia reads from the environment, and 1.12's own wish for an interactive thread, change nothing.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_JULIACALL_THREADS"}
    environment["JULIA_NUM_THREADS"] = "3,1"
    ran = subprocess.run([sys.executable, "-c", POOLS], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.stdout.split("\n") == ["2", "2", "default", "0", "[1, 2]", ""], ran.stderr


TOO_MANY = """
import os
from pyjuice_lvd import julia
from pyjuice_lvd.errors import InputError

wanted = os.cpu_count() + 1
try:
    print(julia.start(threads=wanted).threads == wanted)  # as newer ones do
except InputError as error:
    print(str(error).startswith(f"threads: found {wanted}, wanted at most {julia.info().threads}: "))
"""


def test_a_julia_that_starts_fewer_threads_than_asked_for_says_so() -> None:
    assert set(python(TOO_MANY).stdout.split()) == {"True"}


INTERRUPTED = """
import os, sys, time
from pyjuice_lvd import julia
from pyjuice_lvd.errors import JuliaError

julia.start(threads=2)
julia.evaluate("busy(seconds) = (t = time(); while time() - t < seconds; end; seconds)")
print("ready", flush=True)
try:
    while True:
        julia.evaluate("busy(0.3)")
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(julia.evaluate("Threads.@threads for i in 1:4; busy(0.01); end; 6 * 7"), flush=True)
child = os.fork()
if child == 0:
    try:
        julia.evaluate("1")
    except JuliaError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_ctrl_c_stops_a_long_job_and_leaves_julia_usable() -> None:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(60, process.kill)  # a lost Ctrl-C fails the test, it does not hang it
        watchdog.start()
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - sent < 2.0
        assert process.stdout.readline() == "42\n"
        assert "does not survive a fork" in process.stdout.readline()
        watchdog.cancel()
    assert process.returncode == 0


SIGNALS = """
import os, signal, subprocess, sys, time
from pyjuice_lvd import julia

def state():
    ours = open("/proc/thread-self/status").read()
    # What a child process finds: blocked and ignored signals are handed down, handlers are not.
    child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    return [line for text in (ours, child) for line in text.splitlines() if line[:6] in ("SigBlk", "SigIgn")]

heard = []
ours = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGURG, signal.SIGCONT}
for number in ours:
    signal.signal(number, lambda number, _: heard.append(number))
signal.signal(signal.SIGURG, signal.SIG_IGN)
signal.signal(signal.SIGCONT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
before = state()
julia.start(threads=2)
julia.evaluate("run(`true`); Threads.@threads for i in 1:4; sum(rand(1000)); end")
assert state() == before, (before, state())
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGWINCH})
heard.clear()
for number in ours:
    os.kill(os.getpid(), number)
    julia.evaluate("1")
print(set(ours) - set(heard), len(heard) - len(ours), flush=True)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
os.kill(os.getpid(), signal.SIGUSR1)
signal.signal(signal.SIGABRT, signal.SIG_DFL)
os.abort()
"""


WAITS = """
import os, signal, subprocess, sys, time
from pyjuice_lvd import julia

signal.alarm(100)  # a process that Julia does not hear of is waited for for ever
heard, listens = [], "{listens}"
if listens == "before":
    signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))
julia.start(threads=1)
julia.call("Base.invokelatest", julia.evaluate("() -> (global earlier = run(`sleep 0.1`; wait=false); 0)"))
if listens == "after":  # Julia has a process
    signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))
time.sleep(0.3)
for _ in range(3):
    assert julia.evaluate("success(`true`)")
julia.evaluate("begin global later = run(`sleep 0.3`; wait=false); 0 end")
time.sleep(0.8)  # it ends while Python is at work
assert julia.evaluate("(wait(later); wait(earlier); later.exitcode + earlier.exitcode)") == 0
julia.evaluate("begin global later = run(`sleep 0.3`; wait=false); 0 end")
julia.call("Base.invokelatest", julia.evaluate("() -> (wait(later); success(`true`))"))
heard.clear()
subprocess.run(["true"])
assert heard == [1] * (listens != "nobody"), heard
child = os.fork()
if child == 0:  # has nothing to tell Julia, which it would do by a pipe that both have
    subprocess.run(["true"])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("done")
"""


@pytest.mark.parametrize("listens", ["nobody", "before", "after"])
def test_julia_hears_of_the_end_of_its_own_processes_and_whoever_else_listens_too(listens: str) -> None:
    ran = python(WAITS.format(listens=listens))
    assert ran.stdout == "done\n", ran.stderr


def test_signals_are_as_they_were_before_julia() -> None:
    ran = python(SIGNALS, LVD_THREADS="2")
    assert ran.stdout == "set() 0\n", ran.stderr
    assert ran.returncode == -signal.SIGABRT
    assert ran.stderr == ""  # it ended as it would without Julia, and without Julia's report


DEAF = """
import ctypes, os, signal, time
from pyjuice_lvd.julia import signals

try:
    with signals.kept(), signals.heard():
        # As Julia does some time before its start is over: a handler that takes note of the signal, and no more.
        nothing = signals._Action(ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p).value)
        signals._sigaction(signal.SIGINT, ctypes.byref(nothing), None)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
    print("swallowed")
except KeyboardInterrupt:
    print("heard")
"""


def test_ctrl_c_is_heard_while_julia_starts() -> None:
    ran = python(DEAF)
    assert ran.stdout == "heard\n", ran.stderr


FAULTS = """
import faulthandler, sys
from pyjuice_lvd import julia

if sys.argv[1] == "enabled":
    faulthandler.enable()
julia.start(threads=2)
julia.evaluate('''
meet() = (Threads.@threads for i in 1:100; foreach(_ -> sum(rand(100)), 1:300); GC.gc(false); end; nothing)
''')
for change in (faulthandler.enable, faulthandler.disable, faulthandler.enable, faulthandler.disable):
    change()
    julia.evaluate("meet()")
    change()
julia.evaluate("atexit(meet)")
faulthandler.disable()
print("done")
"""


@pytest.mark.parametrize("before", ["enabled", "disabled"])
def test_julias_threads_meet_whatever_becomes_of_faulthandler(before: str) -> None:
    ran = python(FAULTS, before, LVD_THREADS="2")
    assert (ran.stdout, ran.returncode) == ("done\n", 0), ran.stderr


def test_pytest_ends_well(tmp_path: Path) -> None:
    # pytest switches its faulthandler on before the tests and off after them.
    code = "meet() = (Threads.@threads for i in 1:100; foreach(_ -> sum(rand(100)), 1:300); GC.gc(false); end; nothing)"
    test = f'from pyjuice_lvd import julia\ndef test(): julia.evaluate("{code}; atexit(meet); meet()")\n'
    (tmp_path / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    environment = {**os.environ, "LVD_THREADS": "2"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr


FORKED = """
import os, signal, sys
from pyjuice_lvd import julia

julia.start(threads=2)
# The child has the thread that forks, not the one that is at work: whoever waits for that waits for ever.
julia.evaluate('''
const BUSY = Threads.Atomic{Int}(0)
atexit(() -> (GC.gc(); println("Julia has ended"); flush(stdout)))
Threads.@spawn (BUSY[] = 1; while BUSY[] == 1 end)
while BUSY[] == 0; ccall(:usleep, Int32, (UInt32,), 1000) end
''')
for status in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        sys.exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
julia.evaluate("BUSY[] = 2")
"""


def test_a_forked_process_ends_without_julia() -> None:
    ran = python(FORKED)
    assert ran.stdout == "0\n1\n2\nJulia has ended\n", ran.stderr
    assert ran.returncode == 0


def test_after_its_end_julia_is_not_called() -> None:
    code = """
        import atexit
        from pyjuice_lvd import julia
        from pyjuice_lvd.errors import JuliaError

        @atexit.register  # before Julia starts: it runs after Julia's end
        def late():
            try:
                print(julia.evaluate("1"))
            except JuliaError as error:
                print(error)

        julia.start()
        atexit.register(lambda: print(julia.evaluate("6 * 7")))
    """
    ran = python(code)
    assert ran.stdout == "42\nJulia was called after its end, which comes with Python's exit\n", ran.stderr


def test_extensions_imported_after_julia_may_throw_cxx_exceptions() -> None:
    # matplotlib's ft2font answers a missing attribute with a C++ exception, and Python asks for one on import.
    code = """
        from pyjuice_lvd import julia
        julia.start()
        from matplotlib import ft2font
        try:
            ft2font.no_such_attribute
        except AttributeError:
            print("caught", julia.evaluate('try error("x") catch; 1 end'))
    """
    ran = python(code)
    assert ran.stdout == "caught 1\n", ran.stderr
