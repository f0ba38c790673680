"""The door to Julia: what crosses it, whose memory it is, how it fails, and what it lives beside."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyjuice_lvd import Circuit, julia
from pyjuice_lvd.errors import InputError, JuliaError
from pyjuice_lvd.julia import find

# Functions under test live in a submodule of LVDJuice, where `julia.call` finds them by a dotted name.
FUNCTIONS = """
LVDJuice.eval(:(module DoorTest
    import ..Boundary
    const KEPT = Ref{Any}(nothing)
    describe(x) = (string(typeof(x)), string(size(x)), UInt(pointer(x)) % Int64)
    set!(x, value, index...) = (x[index...] = value; nothing)
    fresh(n) = (KEPT[] = zeros(Float64, 2, n))
    address() = UInt(pointer(KEPT[])) % Int64
    peek(index...) = KEPT[][index...]
    forget() = (KEPT[] = nothing; GC.gc(); nothing)
    same(x) = x
    all_of(xs...) = xs
    total(d) = sum(values(d))
    struct Kept{T}
        array::T
    end
    keep(x) = Kept(x)
    kept(x) = x.array
    sum_of(x) = sum(x.array)
    first_row(x) = (reshape(x, :), fill(x[1], 2))
    fill!(x, value) = Base.fill!(x, value)
    take_over(name, x) = (x[1] = 7; nothing)
    Boundary.writes(::typeof(take_over)) = (2,)
end))
nothing
"""


@pytest.fixture(scope="module")
def call() -> Callable[..., Any]:
    julia.evaluate(FUNCTIONS)
    return lambda name, *args: julia.call(f"DoorTest.{name}", *args)


# ------------------------------------------------------------------------------------------------- what crosses


def test_an_argument_is_the_callers_memory(call: Callable[..., Any]) -> None:
    x = np.zeros((3, 4))
    kind, size, address = call("describe", x)
    assert address == x.ctypes.data
    assert size == "(4, 3)"  # a C-ordered (3, 4) array is a Julia (4, 3) matrix
    assert kind in ("Array{Float64,2}", "Matrix{Float64}")
    call("set!", x, 7.0, 2, 1)
    np.testing.assert_array_equal(x, [[0, 7, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_a_result_is_julias_memory(call: Callable[..., Any]) -> None:
    y = call("fresh", 3)
    assert y.shape == (3, 2)
    assert y.dtype == np.float64
    assert y.ctypes.data == call("address")
    y[2, 1] = 5.0
    assert call("peek", 2, 3) == 5.0
    julia.evaluate("LVDJuice.DoorTest.KEPT[][1, 3] = 6.0")
    assert y[2, 0] == 6.0


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_dtype_crosses_both_ways(dtype: str) -> None:
    x = np.array([[0, 1, 0], [1, 1, 1]], dtype)
    back = julia.call("Base.copy", x)
    assert back.dtype == x.dtype
    assert back.ctypes.data != x.ctypes.data
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("ndim", range(7))
def test_up_to_six_dimensions_cross_both_ways(ndim: int) -> None:
    shape = tuple(range(2, 2 + ndim))
    x = np.random.default_rng(0).random(shape)
    y = julia.call("Base.copy", x)
    assert y.shape == shape
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("shape", [(3, 0, 2), (0,), (0, 2**40), (2**40, 0)])
def test_an_empty_array_keeps_its_shape(shape: tuple[int, ...]) -> None:
    assert julia.call("Base.copy", np.empty(shape, np.float32)).shape == shape


def test_an_empty_array_has_no_address() -> None:
    x = np.frombuffer(bytearray(17), np.uint8)[1:1].view(np.float64)  # nowhere that Julia could read a Float64
    assert julia.call("Base.sum", x) == 0.0


def read_only(kind: str, folder: Path) -> np.ndarray:
    """The numbers 0..3, where nobody may write."""
    x = np.arange(4.0)
    if kind == "bytes":
        return np.frombuffer(x.tobytes())
    if kind == "file":
        np.save(folder / "x.npy", x)
        return np.load(folder / "x.npy", mmap_mode="r")
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("kind", ["array", "bytes", "file"])
def test_a_read_only_array_is_read_and_never_written(call: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    x = read_only(kind, tmp_path)
    assert julia.call("Base.sum", x) == 6
    assert call("same", x) is x
    wanted = "found a read-only array, want one that can be written to"
    with pytest.raises(InputError, match=rf"^DoorTest.fill!: argument 1: {wanted}$"):
        call("fill!", x, 5.0)
    with pytest.raises(InputError, match=rf"^DoorTest.take_over: argument 2: {wanted}$"):
        call("take_over", "x", x)
    np.testing.assert_array_equal(x, [0, 1, 2, 3])
    y = x.copy()
    call("fill!", y, 5.0)
    call("take_over", "y", y)
    np.testing.assert_array_equal(y, [7, 5, 5, 5])
    call("fill!", np.zeros(0), x[1])  # a number of a read-only array is a number


def test_an_argument_that_comes_back_is_the_same_object(call: Callable[..., Any]) -> None:
    x = np.zeros(5)
    assert call("same", x) is x
    first, second = call("all_of", 1, x)
    assert first == 1
    assert second is x


@pytest.mark.parametrize(
    "x",
    [
        None,
        True,
        False,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        0.0,
        -1.5e300,
        float("inf"),
        "",
        "hé\0llo",
        os.fsdecode(b"f\xffle"),
    ],
)
def test_scalars_cross_both_ways(call: Callable[..., Any], x: object) -> None:
    y = call("same", x)
    assert type(y) is type(x)
    assert y == x


def test_numpy_scalars_are_scalars(call: Callable[..., Any]) -> None:
    results = call("all_of", np.int32(3), np.float32(0.5), np.bool_(True))
    assert results == (3, 0.5, True)
    assert [type(r) for r in results] == [int, float, bool]


def test_tuples_cross_one_level_deep(call: Callable[..., Any]) -> None:
    assert call("all_of") == ()
    assert call("all_of", 1) == (1,)
    assert call("all_of", *range(16)) == tuple(range(16))
    with pytest.raises(JuliaError, match="17 results"):
        call("all_of", *range(17))


def test_other_objects_stay_in_julia_behind_a_handle(call: Callable[..., Any]) -> None:
    d = julia.evaluate("Dict(:a => 1, :b => 41)")
    assert isinstance(d, julia.Handle)
    assert "Dict{Symbol" in repr(d)
    assert call("total", d) == 42


# ------------------------------------------------------------------------------------------------- lifetime


def registered() -> int:
    gc.collect()
    return int(julia.call("Boundary.registered"))


def test_a_result_lives_as_long_as_any_view_of_it(call: Callable[..., Any]) -> None:
    before = registered()
    view = call("fresh", 50_000)[100:200].T
    call("forget")
    view[:] = 3.0
    julia.evaluate("for i in 1:20; fill(1.0, 2, 50_000); end; GC.gc()")
    assert registered() == before + 1
    np.testing.assert_array_equal(view, 3.0)
    del view
    assert registered() == before


def test_what_a_handle_may_use_lives_as_long_as_the_handle(call: Callable[..., Any]) -> None:
    x = np.arange(500_000.0)  # large: memory that is freed is gone, not just used again
    total, alive = x.sum(), weakref.ref(x)
    handle = call("keep", x)
    del x
    second = call("keep", handle)  # what is made of it reaches as far
    del handle
    gc.collect()
    junk = [np.ones(500_000) for _ in range(4)]
    again = call("kept", second)
    del second
    julia.evaluate("GC.gc()")
    assert alive() is not None
    assert call("sum_of", again) == total == call("kept", again).sum()
    del again, junk
    gc.collect()
    assert alive() is None


def test_an_array_that_is_another_form_of_an_argument_keeps_it(call: Callable[..., Any]) -> None:
    x = np.full((500, 1000), 3.0)
    alive = weakref.ref(x)
    flat, copied = call("first_row", x)
    del x
    gc.collect()
    junk = [np.ones((500, 1000)) for _ in range(4)]
    assert flat.sum() == 1_500_000
    del flat, junk
    gc.collect()
    assert alive() is None  # the other result has nothing to do with it
    assert copied.tolist() == [3.0, 3.0]


def test_a_circuit_keeps_nothing_of_what_it_was_made_from() -> None:
    pc = Circuit.fully_factorized(num_vars=3, num_cats=4)
    num_vars, *arrays = (np.copy(x) for x in julia.call("circuit_arrays", pc.engine.circuit))
    alive = weakref.ref(arrays[-3])
    handles = [julia.call("circuit_of", int(num_vars), *arrays), julia.call("Circuit", int(num_vars), *arrays)]
    del arrays
    gc.collect()
    assert alive() is not None  # this constructor takes the arrays as they are
    handles.pop()
    gc.collect()
    assert alive() is None
    assert Circuit(handles[0]).log_likelihood([[0, 1, 2]]) == pytest.approx(-3 * np.log(4))


def test_handles_and_tuples_are_released() -> None:
    before = registered()
    handle, array = julia.evaluate("(Dict(1 => 2), [1, 2])")
    assert registered() == before + 2
    del handle
    assert registered() == before + 1
    del array
    assert registered() == before


def test_finalizers_of_other_threads_only_queue(call: Callable[..., Any]) -> None:
    before = registered()
    held = [call("fresh", 1)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert registered() == before


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (np.zeros((4, 4)).T[:2], "not C-contiguous"),
        (np.zeros((4, 4))[:, ::2], "not C-contiguous"),
        (np.zeros(3, "f2"), "<f2"),
        (np.zeros(3, ">f8"), ">f8"),
        (np.zeros(3, "c16"), "<c16"),
        (np.array(["a"]), "<U1"),
        (np.array([None]), "|O"),
        (np.frombuffer(bytearray(33), np.uint8)[1:].view(np.float64), "not aligned"),
        (np.asfortranarray(np.zeros((2, 3))), "not C-contiguous"),
        (np.broadcast_to(np.zeros(1), (2**30, 2**20)), "not C-contiguous"),
        (np.zeros((1,) * 7), "7 dimensions"),
        (np.ma.masked_equal([1, 2], 2), "masked array"),
        (np.array([0, 1, 2], np.uint8).view(bool), "bytes other than 0 and 1"),
        (2**63, "9223372036854775808"),
        ("half \ud800", "half"),
        ([1, 2], "list"),
    ],
)
def test_what_cannot_cross_is_refused(call: Callable[..., Any], x: object, found: str) -> None:
    with pytest.raises(InputError) as error:
        call("all_of", 1, x)
    assert str(error.value).startswith("DoorTest.all_of: argument 2: found")
    assert found in str(error.value)
    assert "want" in str(error.value)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((4, 4)).T[:2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.frombuffer(bytearray(range(33)), np.uint8)[1:].view(np.float64),
        np.array(5.0),
        np.broadcast_to(np.arange(3), (2, 3)),
    ],
)
def test_any_array_of_numbers_can_be_made_fit(call: Callable[..., Any], x: np.ndarray) -> None:
    fit = julia.lendable(x)
    assert julia.lendable(fit).ctypes.data == fit.ctypes.data  # it is not copied again
    np.testing.assert_array_equal(call("same", fit), x)
    np.testing.assert_array_equal(julia.call("Base.copy", fit), x)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ('error("no luck")', JuliaError, "no luck"),
        ("undefined_name", JuliaError, "UndefVarError: .*undefined_name.*not defined"),
        ("[1, 2][5]", JuliaError, "BoundsError"),
        ('throw(ArgumentError("bad argument"))', InputError, "^bad argument$"),
        (
            "[1, 2] + [1, 2, 3]",
            InputError,
            "^(dimensions must match|arrays could not be broadcast|a has size .* mismatch at dim 1)",
        ),
        ("sqrt(-1.0)", InputError, "found -1.0"),
        ('Threads.@threads for i in 1:2; throw(ArgumentError("in a thread")); end', InputError, "^in a thread$"),
        ('fetch(Threads.@spawn error("in a task"))', JuliaError, "^in a task$"),
        ("1 +", JuliaError, "syntax|ParseError"),
    ],
)
def test_exceptions_carry_julias_message(code: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        julia.evaluate(code)
    assert type(error.value) is kind
    assert julia.evaluate("1 + 1") == 2


def test_an_unknown_function_is_named() -> None:
    with pytest.raises(JuliaError, match="no_such_function"):
        julia.call("no_such_function")


def test_calls_from_another_thread_are_refused() -> None:
    errors = []

    def run() -> None:
        try:
            julia.evaluate("1")
        except JuliaError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == ["Julia was called from another thread: call it only from the thread that started it"]


def test_julia_starts_once() -> None:
    info = julia.start()
    assert julia.start(threads=info.threads, bridge=info.bridge) == info == julia.info()
    with pytest.raises(InputError, match=f"threads: found {info.threads + 1}, but Julia runs with {info.threads}"):
        julia.start(threads=info.threads + 1)
    other = next(name for name in find.BRIDGES if name != info.bridge)
    with pytest.raises(InputError, match="bridge"):
        julia.start(bridge=other)


# ------------------------------------------------------------------------------------------------------- in pieces

SLOW = """
LVDJuice.eval(:(module DoorTestSlow
    using ..Boundary: pause
    const ROUNDS = Ref(0)
    function slow(seconds, fails)
        ended = time() + seconds
        while time() < ended
            ROUNDS[] += 1
            Threads.@threads for t in 1:4
                sleep_until(time() + 0.002)
            end
            pause()
        end
        fails && throw(ArgumentError("seconds = $seconds: too long"))
        return "done", zeros(3)
    end
    sleep_until(t) = while time() < t; pause(); end
    rounds() = ROUNDS[]
end))
nothing
"""


def test_a_long_call_comes_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyjuice_lvd.julia import session

    julia.evaluate(SLOW)
    pieces, entry = [], session._session.entry

    def timed(*args: Any) -> int:
        began = time.monotonic()
        count = entry(*args)
        pieces.append(time.monotonic() - began)
        return count

    monkeypatch.setattr(session._session, "entry", timed)
    text, zeros = julia.call("DoorTestSlow.slow", 1.0, False)
    assert (text, zeros.tolist()) == ("done", [0, 0, 0])
    assert len(pieces) >= 3
    assert max(pieces) < 0.5
    with pytest.raises(InputError, match=r"seconds = 0\.7: too long"):
        julia.call("DoorTestSlow.slow", 0.7, True)


def test_ctrl_c_ends_a_long_call_and_the_next_one_is_well() -> None:
    julia.evaluate(SLOW)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        julia.call("DoorTestSlow.slow", 60.0, False)
    assert time.monotonic() - began < 5
    rounds = julia.call("DoorTestSlow.rounds")
    julia.call("Base.GC.gc")
    assert julia.call("DoorTestSlow.slow", 0.01, False)[0] == "done"
    assert julia.call("DoorTestSlow.rounds") - rounds < 20  # the first one is given up, and does not go on
