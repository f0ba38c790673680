"""Processes of torchrun that share their work, on this machine: the same model, and no end but a clean one."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import lvd_juice

from pyjuice_lvd import LVD, Circuit, distributed
from pyjuice_lvd.circuit.reduce import (
    LostProcessError,
    Reducer,
    all_or_none,
    current,
    on_first,
    owners,
    spread,
    using,
)
from pyjuice_lvd.errors import InputError, RefusedError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LVD_THREADS": "1", "LVD_SILENCE": "6"}
HCLT = [
    "--method", "hclt", "--set", "hclt.latents=4", "--set", "hclt.epochs=600", "--set", "hclt.batch_size=64",
    "--set", "hclt.patience=600", "--json",
]  # fmt: skip
DISTILLED: dict[str, Any] = {
    "random_state": 3,
    "config": {
        "teacher": {"epochs": 1, "codes": 8, "channels": 8, "patch": (4, 4)},
        "clusters": {"outer": 2, "inner": 2},
        "refining": {"rounds": 1, "latents": 2},
        "circuit": {"latents": 2, "epochs": 2, "batch_size": 128},
    },
}


def torchrun(processes: int, *args: str | Path, restarts: int = 0) -> subprocess.Popen[str]:
    """Start a program, or `-m MODULE`, in some processes; what they print comes through one pipe."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command.append(f"--max-restarts={restarts}")
    return subprocess.Popen(
        [*command, *map(str, args)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def by_hand(processes: int, *args: str | Path) -> subprocess.Popen[str]:
    """Start a program in some processes without torchrun, as a cluster's own launcher may; gives the first of them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, args)],
            env={**ENVIRONMENT, **meeting, "RANK": str(rank), "WORLD_SIZE": str(processes)},
            stdout=None if rank else subprocess.PIPE,
            text=True,
        )
        for rank in reversed(range(processes))
    ][-1]


def fit(processes: int, data: Path, run: Path, *args: str, restarts: int = 0) -> subprocess.Popen[str]:
    return torchrun(processes, "-m", "pyjuice_lvd.cli", "fit", data, "-o", run, *HCLT, *args, restarts=restarts)


def ends(started: subprocess.Popen[str], seconds: float = 500) -> str:
    """Wait for the end; returns what was said."""
    try:
        return started.communicate(timeout=seconds)[0]
    finally:
        started.kill()


def ranks(started: subprocess.Popen[str]) -> dict[int, int]:
    """Find the process number of each rank."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    found = {}
    for child in children.read_text().split() if children.exists() else ():
        try:
            environment = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        found |= {int(entry[5:]): int(child) for entry in environment if entry.startswith("RANK=")}
    return found


def epochs_of(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"epoch"') if metrics.exists() else 0


def wait_for_epoch(started: subprocess.Popen[str], run: Path, epoch: int) -> None:
    until = time.monotonic() + 400
    while epochs_of(run) < epoch:
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six columns that follow one of two patterns, 230 rows of training: batches that two and three do not divide."""
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((370, 1)) < 0.5, [[0, 1, 2, 0, 1, 2]], [[2, 2, 0, 1, 0, 0]])
    rows = np.where(rng.random(rows.shape) < 0.1, rng.integers(0, 3, rows.shape), rows)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, train=rows[:230], valid=rows[230:300], test=rows[300:])
    return path


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result: dict[str, Any] = json.loads(lvd_juice("fit", table, "-o", folder, "--quiet", *HCLT).stdout)
    return result


def test_one_process_shares_with_nobody() -> None:
    assert type(current()) is Reducer
    assert (current().rank, current().size) == (0, 1)
    rows = np.arange(6.0)
    assert np.array_equal(spread(6, lambda part: rows[part]), rows)
    assert np.array_equal(on_first(lambda: rows), rows)
    assert owners([5, 1, 3]) == [0, 0, 0]
    reducer = Reducer()
    reducer.rank, reducer.size = 1, 3
    assert [reducer.part(10), reducer.part(10, unit=4), reducer.part(1)] == [slice(3, 6), slice(4, 8), slice(0, 0)]
    code = "import pyjuice_lvd.cli.fit, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


PROGRAM = """
    import json, sys
    import numpy as np
    from pyjuice_lvd import LVD, Circuit
    from pyjuice_lvd.circuit import checkpoint
    from pyjuice_lvd.circuit.reduce import alone, current, on_first, owners, spread
    from pyjuice_lvd.distributed import processes
    from pyjuice_lvd.errors import InputError

    with processes() as reducer:
        rank, size = reducer.rank, reducer.size
        assert current() is reducer
        sums, told = np.arange(5.0) + rank, np.full((2, 3), rank, np.int32)
        reducer.all_reduce(sums)
        reducer.broadcast(told)
        assert np.array_equal(sums, size * np.arange(5.0) + sum(range(size))) and not told.any()
        assert reducer.gather_bytes(b"x" * rank) == [b"x" * each for each in range(size)]
        assert reducer.broadcast_bytes(bytes([rank])) == bytes([0])
        rows = np.arange(14, dtype=np.int16).reshape(7, 2)
        assert np.array_equal(spread(7, lambda part: rows[part]), rows)
        assert np.array_equal(spread(1, lambda part: rows[:1][part]), rows[:1])
        assert on_first(lambda: np.array([rank])).tolist() == [0]
        with alone():
            assert current().size == 1
        assert sorted(owners([9, 5, 4, 4, 4])[:size]) == list(range(size))
        try:
            reducer.check_same(rows="same", weights=str(rank))
        except InputError as error:
            assert str(error).startswith("weights: found others in process 1"), error
        else:
            raise AssertionError

        with np.load(sys.argv[1]) as data:
            table, images = data["table"], data["images"]
        values = []
        for _ in range(2):
            pc = Circuit.hclt(table, num_latents=3, heads=2, seed=1)
            heads = np.arange(len(table)) % 2
            history = pc.fit_em(table, heads=heads, epochs=3, batch_size=50, valid=table[:31], valid_heads=heads[:31])
            values.append([*history, *history.valid, *np.concatenate(pc.parameters())])
        assert values[0] == values[1]
        assert len({tuple(np.frombuffer(text)) for text in reducer.gather_bytes(np.array(values[0]).tobytes())}) == 1

        checkpoint._INTERVAL = 0.0  # after each epoch, from the first on
        em = {"heads": heads, "epochs": 3, "batch_size": 50, "valid": table[:31], "valid_heads": heads[:31]}

        def interrupt(history):
            if len(history) == 2:
                raise KeyboardInterrupt

        for on_epoch in (interrupt, None):
            pc = Circuit.hclt(table, num_latents=3, heads=2, seed=1)
            try:
                resumed = pc.fit_em(table, **em, checkpoint=sys.argv[3], on_epoch=on_epoch)
            except KeyboardInterrupt:
                continue
        assert values[0] == [*resumed, *resumed.valid, *np.concatenate(pc.parameters())]
        bpds = {}
        for name, settings in json.loads(sys.argv[2]).items():
            bpds[name] = LVD(**settings).fit(images).bpd(images[:50])
        if rank == 0:
            print("FOUND", json.dumps([history, history.valid, bpds]))
"""


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_learn_what_one_does(processes: int, table: Path, tmp_path: Path) -> None:
    with np.load(table) as parts:
        rows = parts["train"]
    images = np.random.default_rng(1).integers(0, 40, (120, 8, 8, 1)) + np.linspace(0, 200, 120)[:, None, None, None]
    images = images.astype(np.uint8)
    data, program = tmp_path / "data.npz", tmp_path / "program.py"
    np.savez(data, table=rows, images=images)
    program.write_text(textwrap.dedent(PROGRAM))
    offsets = {"steps": (32,), "joins": 2, "states": 4, "epochs": 1, "batch_size": 50, "groups": 2}
    own = {"offsets": {**offsets, "trees": "combs"}}
    # Three learn a circuit alone: of whole models, the jobs' parts are compared in Julia's own tests (test_shared.jl).
    models = {"LVD": {**DISTILLED, "config": {**DISTILLED["config"], **own}}} if processes == 2 else {}
    start = torchrun if processes == 2 else by_hand
    said = ends(start(processes, program, data, json.dumps(models), tmp_path / "em.safetensors"))
    (line,) = [line for line in said.splitlines() if line.startswith("FOUND")] or [said]
    history, valid, bpds = json.loads(line.removeprefix("FOUND"))
    pc = Circuit.hclt(rows, num_latents=3, heads=2, seed=1)
    heads = np.arange(len(rows)) % 2
    alone = pc.fit_em(rows, heads=heads, epochs=3, batch_size=50, valid=rows[:31], valid_heads=heads[:31])
    assert history == pytest.approx(list(alone), abs=1e-5)
    assert valid == pytest.approx(alone.valid, abs=1e-5)
    for name, settings in models.items():
        assert bpds[name] == pytest.approx(LVD(**settings).fit(images).bpd(images[:50]), abs=1e-5)


@pytest.fixture(scope="module")
def interrupted(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, of which one was killed in the midst of EM."""
    run = tmp_path_factory.mktemp("runs") / "shared"
    started = fit(2, table, run)
    wait_for_epoch(started, run, 3)
    again = lvd_juice("fit", table, "-o", run, "--resume", *HCLT, check=False)  # while they are at it
    assert again.returncode == 2
    assert "is writing this run" in again.stderr
    at = ranks(started)
    assert sorted(at) == [0, 1]
    os.kill(at[1], signal.SIGKILL)
    killed = time.monotonic()
    said = ends(started, 120)
    assert time.monotonic() - killed < 60
    lines = [line for line in said.splitlines() if line.startswith("lvd-juice: error: ")]
    assert len(lines) == 1, said
    assert "process 0 of 2" in lines[0]
    assert "--resume goes on" in lines[0]
    return run


def test_other_numbers_of_processes_finish_a_run(table: Path, interrupted: Path, whole: dict[str, Any]) -> None:
    """It goes on with three, of which the first is killed twice, and ends with one: nothing that was done is lost."""
    started = fit(3, table, interrupted, "--resume", restarts=1)
    wait_for_epoch(started, interrupted, epochs_of(interrupted) + 3)
    killed = ranks(started)
    os.kill(killed[0], signal.SIGKILL)
    while set(killed.values()) & set((again := ranks(started)).values()) or len(again) < 3:
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.05)  # until torchrun has started all of them again
    wait_for_epoch(started, interrupted, epochs_of(interrupted) + 3)
    os.kill(again[0], signal.SIGKILL)
    said = ends(started, 120)
    lines = [line for line in said.splitlines() if line.startswith("lvd-juice: error: ")]
    assert sorted(line.split(": ")[2] for line in lines) == 2 * ["process 1 of 3"] + 2 * ["process 2 of 3"], said
    result = json.loads(lvd_juice("fit", table, "-o", interrupted, "--resume", "--quiet", *HCLT).stdout)
    assert result["bpd"] == pytest.approx(whole["bpd"], abs=1e-5)


def test_a_process_that_hangs_ends_the_others(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = fit(2, table, run, "--set", "hclt.epochs=1000000", "--set", "hclt.patience=1000000")
    wait_for_epoch(started, run, 2)
    at = ranks(started)
    os.kill(at[1], signal.SIGSTOP)
    stopped = time.monotonic()
    said = ends(started, 120)
    assert time.monotonic() - stopped < 60
    lines = [line for line in said.splitlines() if line.startswith("lvd-juice: error: ")]
    assert len(lines) == 1, said
    assert "process 0 of 2: no sign of life of process 1 (" in lines[0]
    assert not Path(f"/proc/{at[1]}").exists()


def test_bad_input_is_said_once_and_changes_nothing(table: Path, tmp_path: Path) -> None:
    """Neither does a restart take a run for its own that it was refused."""
    run = tmp_path / "run"
    lvd_juice("fit", table, "-o", run, "--quiet", *HCLT, "--set", "hclt.epochs=1")
    (run / "result.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    started = fit(2, table, run, "--seed", "0", restarts=1)
    said = ends(started, 120)
    lines = [line for line in said.splitlines() if line.startswith("lvd-juice: ")]
    assert len(lines) == 2, said  # of two starts
    assert all("holds a run already" in line for line in lines)
    assert started.returncode
    assert "exitcode  : 2 " in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"RANK": "one"}, "RANK: found 'one', wanted an integer from 0 to 1"),
        ({"RANK": "2"}, "RANK: found '2', wanted an integer from 0 to 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: found 'two', wanted an integer"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: found nothing"),
        ({"MASTER_PORT": "no"}, "MASTER_PORT: found 'no', wanted an integer from 1"),
    ],
)
def test_what_a_launcher_says_is_checked(given: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", **given}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=found), distributed.processes():
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_is_waited_for_without_end(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        told = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", **told}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_MEETING", 1.0)
    absent = "without process 1" if rank == 0 else "refused"
    before = signal.getsignal(signal.SIGTERM)  # a process of torchrun's that ends is not to be told so once more
    lost = pytest.raises(LostProcessError, match=f"process {rank} of 2: cannot meet the others.*{absent}")
    with lost, distributed.processes():
        pass
    signal.signal(signal.SIGTERM, before)


def test_bad_input_of_any_process_is_all_ones() -> None:
    class Other(Reducer):
        size = 2

        def gather_bytes(self, content: bytes) -> list[bytes]:
            return [content, b"theirs"] if self.rank == 0 else [b"theirs", content]

    with using(Other()), pytest.raises(RefusedError, match="theirs"), all_or_none():
        pass
    with using(Other()), pytest.raises(InputError, match="mine") as raised, all_or_none():
        raise InputError("mine")
    assert type(raised.value) is InputError
    later = Other()
    later.rank = 1
    with using(later), pytest.raises(RefusedError, match="theirs"), all_or_none():
        raise InputError("mine")
    with pytest.raises(InputError, match="mine"), all_or_none():
        raise InputError("mine")


@pytest.fixture
def hosts() -> Iterator[list[list[str]]]:
    """Two hosts joined by a cable, network namespaces of this machine: on each, what starts a program there."""
    names = [f"lvd-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        subprocess.run(
            ["ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[1]],
            check=True, capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces of one's own here: {error}")
    try:
        for number, name in enumerate(names, 1):
            for what in (["link", "set", "lo", "up"], ["link", "set", "eth0", "up"]):
                subprocess.run(["ip", "-n", name, *what], check=True)
            subprocess.run(["ip", "-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "eth0"], check=True)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def test_two_hosts(table: Path, whole: dict[str, Any], hosts: list[list[str]], tmp_path: Path) -> None:
    """The example of docs/distributed.md: a cable that is cut ends both hosts' processes, and the run is resumed."""
    started = [
        subprocess.Popen(
            [
                *host, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}",
                "--nproc-per-node=1", "--master-addr=10.77.0.1", "--master-port=29400", "-m", "pyjuice_lvd.cli",
                "fit", str(table), "-o", str(tmp_path / f"host-{rank}"), *HCLT,
            ],
            env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "eth0"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip
    wait_for_epoch(started[0], tmp_path / "host-0", 3)
    subprocess.run([*hosts[0], "ip", "link", "set", "eth0", "down"], check=True)
    cut = time.monotonic()
    for rank, host in enumerate(started):
        lines = [line for line in ends(host, 120).splitlines() if line.startswith("lvd-juice: error: ")]
        assert [line.split(": ")[2] for line in lines] == [f"process {rank} of 2"]
    assert time.monotonic() - cut < 60
    assert not (tmp_path / "host-1").exists()
    run = tmp_path / "host-0"
    result = json.loads(lvd_juice("fit", table, "-o", run, "--resume", "--quiet", *HCLT).stdout)
    assert result["bpd"] == pytest.approx(whole["bpd"], abs=1e-5)
