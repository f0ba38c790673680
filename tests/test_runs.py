"""Crash-safe files and run directories."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import atomic_write, check_writable
from pyjuice_lvd.files.formats import json_text, read_arrays, read_json, read_toml, write_arrays, write_json, write_toml
from pyjuice_lvd.files.run import RunDirectory

SETTINGS = {"seed": 0, "threads": 0, "circuit": {"latents": 16, "step_size": [0.1, 0.01]}}


def one_line(error: pytest.ExceptionInfo[InputError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach and write, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Let file permissions count, as they do not for root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextlib.contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """Let writes past `size` bytes in any file fail half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def python(script: str, *args: object, wanted: int = 0) -> str:
    done = subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == wanted, done.stderr
    return done.stdout


# Files


def test_a_written_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "model.png"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert Path(file.name).parent == tmp_path
        assert Path(file.name).suffix == ".png"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["model.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_contents_reach_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("rename"), replace(self, target)))
    with atomic_write(tmp_path / "x") as file:
        name = file.name
        file.write(b"x")
    assert done == [name, "rename", str(tmp_path)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.json"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"part")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.json"]


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path):
    path = tmp_path / "arrays.safetensors"
    write_arrays(path, {"a": np.zeros(10)})
    old = path.read_bytes()
    with disk_with_room_for(1000), pytest.raises(OSError, match=r"arrays\.safetensors"):
        write_arrays(path, {"a": np.ones(10_000)})
    assert path.read_bytes() == old
    assert names(tmp_path) == [path.name]


def test_an_error_without_a_number_keeps_its_words_and_gets_the_files_name(tmp_path):
    with pytest.raises(OSError, match="100 requested and 10 written") as error, atomic_write(tmp_path / "x.npy"):
        raise OSError("100 requested and 10 written")  # as numpy's tofile does
    assert error.value.filename == str(tmp_path / "x.npy")
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".jpc", ".jpc.gz", ".safetensors"])
@pytest.mark.parametrize("room", [100, 20_000])
def test_a_full_disk_leaves_the_old_circuit_and_is_named(tmp_path, monkeypatch, suffix, room):
    """Text is written by Julia; that of a .jpc.gz to the folder of temporary files, whose disk may be the full one."""
    aside, place = tmp_path / "aside", tmp_path / "place"
    aside.mkdir()
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    circuit, path = Circuit.fully_factorized(num_vars=40, num_cats=256), place / f"model{suffix}"
    path.write_bytes(b"old")
    with disk_with_room_for(room), pytest.raises(OSError) as error:  # noqa: PT011  # what it says is looked at below
        circuit.save(path)
    full = aside if suffix == ".jpc.gz" else place
    assert str(error.value.filename).startswith(f"{full}/")
    assert error.value.filename.endswith("model.jpc" if suffix == ".jpc.gz" else path.name)
    assert error.value.strerror == "File too large"
    assert (path.read_bytes(), names(place), names(aside)) == (b"old", [path.name], [])
    circuit.save(path)
    assert Circuit.load(path).num_vars == 40


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    script = (
        "import os, sys; from pyjuice_lvd.files.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file: file.write(b'part'); file.flush(); os.kill(os.getpid(), 9)"
    )
    python(script, path, wanted=-signal.SIGKILL)
    assert path.read_bytes() == b"old"


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_json(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert read_json(tmp_path / "real") == 1


def test_files_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "x.png", tmp_path / "file" / "x.png", tmp_path / "folder"):
        for write in (check_writable, lambda path: write_json(path, 1)):
            with pytest.raises(InputError) as error:
                write(path)
            one_line(error, path, "wanted a file")


def test_what_is_no_file_keeps_its_place(tmp_path):
    pipe, link = tmp_path / "pipe.safetensors", tmp_path / "link.safetensors"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    there = socket.socket(socket.AF_UNIX)
    there.bind(str(tmp_path / "socket.safetensors"))
    pc = Circuit.fully_factorized(num_vars=2, num_cats=2)
    for path, kind in ((pipe, "pipe"), (link, "pipe"), (tmp_path / "socket.safetensors", "socket")):
        for write in (check_writable, lambda path: write_json(path, 1), pc.save):
            with pytest.raises(InputError) as error:
                write(path)
            one_line(error, f"{path}: is a {kind}, wanted a file to write")
    there.close()
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert names(tmp_path) == ["link.safetensors", "pipe.safetensors", "socket.safetensors"]


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "x")
    assert names(tmp_path) == []
    (tmp_path / "x").write_bytes(b"old")
    check_writable(tmp_path / "x")
    assert (names(tmp_path), (tmp_path / "x").read_bytes()) == (["x"], b"old")


def test_a_file_in_an_unwritable_folder_is_named(reachable):
    with unprivileged():
        write_json(reachable / "x", 1)
    reachable.chmod(0o555)
    for write in (check_writable, lambda path: write_json(path, 1)):
        with unprivileged(), pytest.raises(InputError) as error:
            write(reachable / "y")
        one_line(error, reachable / "y", "ermission denied")
    reachable.chmod(0o777)


def test_json_is_standard_json(tmp_path):
    value = {
        "n": np.int64(3),
        "bpd": np.float32(0.5),
        "worst": -np.inf,
        "a": np.array([1.0, np.nan]),
        "p": Path("x"),
        "é": (),
    }
    assert json_text(value) == '{"n": 3, "bpd": 0.5, "worst": null, "a": [1.0, null], "p": "x", "é": []}'
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json")["a"] == [1.0, None]


def test_damaged_json_and_toml_are_named(tmp_path):
    path = tmp_path / "x"
    for read in (read_json, read_toml):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value) == f"{path}: cannot be read (No such file or directory)"
    for contents in (b"{", b"\xff\xfe = 1", b"a = \n1"):
        path.write_bytes(contents)
        for read in (read_json, read_toml):
            with pytest.raises(InputError) as error:
                read(path)
            one_line(error, path, "wanted")


def test_toml_comes_back(tmp_path):
    write_toml(tmp_path / "x.toml", SETTINGS)
    assert read_toml(tmp_path / "x.toml") == SETTINGS


def test_arrays_come_back_whatever_their_layout(tmp_path):
    path = tmp_path / "x.safetensors"
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "fortran": np.asfortranarray(grid),
        "strided": grid[:, ::2, ::-1],
        "transposed": grid.T,
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.int64),
        "mask": np.array([True, False]),
        "pixels": np.arange(256, dtype=np.uint8),
        "big-endian": np.arange(3, dtype=">i4"),
    }
    write_arrays(path, arrays, {"method": "lvd", "é": "≥"})
    back, metadata = read_arrays(path)
    assert metadata == {"method": "lvd", "é": "≥"}
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype.newbyteorder("=")
        assert back[name].shape == array.shape
        assert back[name].flags.c_contiguous
        assert back[name].flags.writeable


def test_arrays_without_metadata(tmp_path):
    write_arrays(tmp_path / "x", {"a": np.ones(2)})
    assert read_arrays(tmp_path / "x")[1] == {}


def test_damaged_arrays_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    write_arrays(path, {"a": np.arange(1000.0), "b": np.arange(10)})
    whole = path.read_bytes()
    for size in (0, 4, 8, 50, 1000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as error:
            read_arrays(path)
        one_line(error, path, "damaged", "wanted a safetensors file")
    path.write_bytes(b"\x93NUMPY" + bytes(200))
    with pytest.raises(InputError) as error:
        read_arrays(path)
    one_line(error, path, "damaged")
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError) as error:
            read_arrays(missing)
        one_line(error, missing)


# Run directories


def test_a_run_from_start_to_finish(tmp_path):
    path = tmp_path / "runs" / "first"
    began = time.time()
    with RunDirectory.create(path, settings=SETTINGS) as run:
        run.log({"stage": "teacher", "epoch": 1, "loss": np.float32(0.5)})
        run.log({"stage": "teacher", "epoch": 2, "loss": np.nan})
        write_arrays(run / "model.safetensors", {"a": np.ones(3)})
        assert not run.finished
        run.finish({"bpd": 4.5})
    run = RunDirectory.open_existing(path)
    assert run.settings == SETTINGS
    assert run.finished
    assert run.result == {"bpd": 4.5}
    first, second = run.metrics()
    assert first.keys() == {"time", "stage", "epoch", "loss"}
    assert (first["loss"], second["loss"]) == (0.5, None)
    assert began - 0.001 <= first["time"] <= second["time"] <= time.time() + 0.001  # milliseconds
    assert names(path) == [".lock", "metrics.jsonl", "model.safetensors", "result.json", "settings.toml"]


def test_an_existing_run_wants_resume(tmp_path):
    RunDirectory.create(tmp_path, settings=SETTINGS).close()
    with pytest.raises(InputError) as error:
        RunDirectory.create(tmp_path, settings=SETTINGS)
    one_line(error, tmp_path, "--resume", "-o")
    RunDirectory.create(tmp_path, settings=SETTINGS, resume=True).close()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for resume in (False, True):
        with pytest.raises(InputError) as error:
            RunDirectory.create(tmp_path, settings=SETTINGS, resume=resume)
        one_line(error, tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


def test_there_must_be_a_run_to_resume(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError) as error:
            RunDirectory.create(path, settings=SETTINGS, resume=True)
        one_line(error, path, "no run to resume", "--resume")
    assert names(tmp_path) == []


def test_a_run_killed_before_its_first_file_can_be_started_again(tmp_path):
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".tmp-0-settings.toml").touch()
    RunDirectory.create(tmp_path, settings=SETTINGS).close()
    assert names(tmp_path) == [".lock", "settings.toml"]


def test_places_where_no_run_can_be(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "run"):
        with pytest.raises(InputError) as error:
            RunDirectory.create(path, settings=SETTINGS)
        one_line(error, path)
        with pytest.raises(InputError) as error:
            RunDirectory.open_existing(path)
        one_line(error, path)


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_an_unwritable_run_directory_is_named(reachable, mode):
    run = reachable / "run"
    run.mkdir()
    run.chmod(mode)
    for path in (run, run / "deeper"):
        with unprivileged(), pytest.raises(InputError) as error:
            RunDirectory.create(path, settings=SETTINGS)
        one_line(error, path, "ermission denied")
    run.chmod(0o777)
    with unprivileged():
        RunDirectory.create(run / "deeper", settings=SETTINGS).close()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"seed": 1}, ("seed is 0", "found 1")),
        ({"circuit": {"latents": 32, "step_size": [0.1, 0.01]}}, ("circuit.latents is 16", "found 32")),
        ({"circuit": {"latents": 16, "step_size": (0.1, 0.02)}}, ("circuit.step_size", "0.02")),
        ({"prior": {"latents": 4}}, ("prior.latents is 'unset'", "found 4")),
    ],
)
def test_a_run_is_resumed_with_its_own_settings(tmp_path, change, parts):
    RunDirectory.create(tmp_path, settings=SETTINGS).close()
    with pytest.raises(InputError) as error:
        RunDirectory.create(tmp_path, settings=SETTINGS | change, resume=True)
    one_line(error, tmp_path, "-o", *parts)
    with pytest.raises(InputError):
        RunDirectory.create(tmp_path, settings={"threads": 0}, resume=True)
    same = {"circuit": {"step_size": (0.1, 0.01), "latents": 16}, "seed": 0, "threads": 7}  # threads may change
    RunDirectory.create(tmp_path, settings=same, resume=True).close()
    assert RunDirectory.open_existing(tmp_path, finished=False).settings == SETTINGS


def test_two_fits_do_not_write_one_run(tmp_path):
    with RunDirectory.create(tmp_path, settings=SETTINGS):
        with pytest.raises(InputError) as error:
            RunDirectory.create(tmp_path, settings=SETTINGS, resume=True)
        one_line(error, tmp_path, f"process {os.getpid()}")
        assert RunDirectory.open_existing(tmp_path, finished=False).metrics() == []  # reading goes on
    RunDirectory.create(tmp_path, settings=SETTINGS, resume=True).close()


def test_the_lock_of_a_killed_fit_is_free(tmp_path):
    script = (
        "import os, sys; from pyjuice_lvd.files.atomic import atomic_write\n"
        "from pyjuice_lvd.files.run import RunDirectory\n"
        "run = RunDirectory.create(sys.argv[1], settings={'seed': 0})\n"
        "run.log({'epoch': 1})\n"
        "with atomic_write(run / 'model.safetensors') as file: file.write(b'x'); os.kill(os.getpid(), 9)"
    )
    python(script, tmp_path, wanted=-signal.SIGKILL)
    assert any(name.startswith(".tmp-") for name in names(tmp_path))
    with RunDirectory.create(tmp_path, settings={"seed": 0}, resume=True) as run:
        assert [record["epoch"] for record in run.metrics()] == [1]
    assert names(tmp_path) == [".lock", "metrics.jsonl", "settings.toml"]


@pytest.mark.parametrize("torn", [b'{"time": 3, "epo', b'{"time": 3, "epoch": 3}', b"\0" * 50, b"\n", b"7\n"])
def test_a_torn_last_line_is_passed_over_and_removed_on_resume(tmp_path, torn):
    with RunDirectory.create(tmp_path, settings=SETTINGS) as run:
        run.log({"epoch": 1})
        run.log({"epoch": 2})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [record["epoch"] for record in run.metrics()] == [1, 2]
    with RunDirectory.create(tmp_path, settings=SETTINGS, resume=True) as run:
        run.log({"epoch": 3})
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_work_that_a_resumed_run_does_again_is_recorded_once(tmp_path):
    with RunDirectory.create(tmp_path, settings=SETTINGS) as run:
        run.log({"stage": "structure", "params": 7})
        for epoch in (1, 2, 3):
            run.log({"stage": "EM", "epoch": epoch, "train": -epoch})
        run.log({"stage": "patch circuit", "cluster": 1})
    with RunDirectory.create(tmp_path, settings=SETTINGS, resume=True) as run:
        for epoch in (2, 3, 4):
            run.log({"stage": "EM", "epoch": epoch, "train": -10 * epoch})
        run.log({"stage": "patch circuit", "cluster": 2})
        run.log({"stage": "note"})
        run.log({"stage": "note"})  # within one process, nothing takes another's place
    records = run.metrics()
    assert [record.get("epoch", record.get("cluster")) for record in records] == [None, 1, 1, 2, 3, 4, 2, None, None]
    assert [record["train"] for record in records if record["stage"] == "EM"] == [-1, -20, -30, -40]
    assert names(tmp_path) == [".lock", "metrics.jsonl", "settings.toml"]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with RunDirectory.create(tmp_path, settings=SETTINGS) as run:
        run.log({"epoch": 1})
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b"?\n")
        run.log({"epoch": 2})
    with pytest.raises(InputError) as error:
        run.metrics()
    one_line(error, tmp_path / "metrics.jsonl", "line 2")


def test_a_full_disk_tears_no_line(tmp_path):
    with RunDirectory.create(tmp_path, settings=SETTINGS) as run:
        run.log({"epoch": 1})
        before = (tmp_path / "metrics.jsonl").read_bytes()
        with disk_with_room_for(len(before) + 10), pytest.raises(OSError, match=r"metrics\.jsonl"):
            run.log({"epoch": 2})
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        run.log({"epoch": 3})
    assert [record["epoch"] for record in run.metrics()] == [1, 3]


def test_a_folder_named_like_a_leftover_stays(tmp_path):
    with RunDirectory.create(tmp_path, settings=SETTINGS):
        pass
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / ".tmp-0-prior.safetensors").touch()
    (tmp_path / ".tmp-mine").mkdir()
    (tmp_path / ".tmp-mine" / "letter.txt").touch()
    RunDirectory.create(tmp_path, settings=SETTINGS, resume=True).close()
    assert names(tmp_path) == [".lock", ".tmp-mine", "model", "settings.toml"]
    assert names(tmp_path / "model") == []
    assert names(tmp_path / ".tmp-mine") == ["letter.txt"]


def test_a_damaged_result_is_named(tmp_path):
    with RunDirectory.create(tmp_path, settings=SETTINGS) as run:
        run.finish({"bpd": 1.0})
    (tmp_path / "result.json").write_text("[1]")
    with pytest.raises(InputError, match=r"result\.json: found a list, wanted a JSON object"):
        _ = run.result


def test_what_a_run_does_not_say_of_its_data_is_named(tmp_path):
    run = RunDirectory.create(tmp_path, settings=SETTINGS)
    run.close()
    with pytest.raises(InputError, match=r"data\.json: cannot be read"):
        _ = run.data
    write_json(tmp_path / "data.json", {"source": "photos"})
    assert run.data["source"] == "photos"
    with pytest.raises(InputError, match=r"data\.json: has no 'digest': damaged, or written by another version"):
        _ = run.data["digest"]


def test_only_finished_runs_are_opened_for_reading(tmp_path):
    for path, part in ((tmp_path / "none", "does not exist"), (tmp_path, "no run directory")):
        with pytest.raises(InputError) as error:
            RunDirectory.open_existing(path)
        one_line(error, path, part)
    RunDirectory.create(tmp_path, settings=SETTINGS).close()
    with pytest.raises(InputError) as error:
        RunDirectory.open_existing(tmp_path)
    one_line(error, tmp_path, "unfinished", "--resume")
    assert not RunDirectory.open_existing(tmp_path, finished=False).finished


def test_ctrl_c_says_what_is_kept_and_frees_the_run(tmp_path):
    def work() -> None:
        with RunDirectory.create(tmp_path, settings=SETTINGS):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        work()
    assert error.value.__notes__ == [f"{tmp_path} keeps what was done; continue it with --resume"]
    RunDirectory.create(tmp_path, settings=SETTINGS, resume=True).close()
