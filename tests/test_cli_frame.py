"""The frame of the command line: exit statuses, one-line errors, and what is imported when."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import click
import numpy as np
import pytest

from pyjuice_lvd.cli import main as frame
from pyjuice_lvd.cli.options import device_option, emit, json_option, quiet_option, seed_option, threads_option
from pyjuice_lvd.errors import InputError, JuliaError, LVDJuiceError

PROTOCOL = {"color": "ycocg", "crop": None, "lossless": True}

# A command line with one more command, `try`, in a process of its own.
FAKE = """
import os, sys, time
import click
from pyjuice_lvd.cli import main as frame
from pyjuice_lvd.files.atomic import atomic_write
from pyjuice_lvd.files.run import RunDirectory

@click.command()
@click.argument("what")
@click.argument("path", default="")
def command(what, path):
    if what == "wait":
        with RunDirectory.create(path, settings={"seed": 0}) as run, atomic_write(run / "model.json") as file:
            file.write(b"part")
            print("ready", flush=True)
            time.sleep(60)
    if what == "lines":
        for number in range(200_000):
            click.echo(f"line {number}")
    if what == "print":
        print("x" * 100)
    if what == "fail":
        raise RuntimeError("it broke\\nin two")

frame.COMMANDS["try"] = frame.COMMANDS["fit"]._replace(target="__main__:command")
sys.exit(frame.main())
"""


def fake(*args: object, stdout: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FAKE, *map(str, args)]
    environment = {name: value for name, value in os.environ.items() if name != "LVD_DEBUG"}
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def command(monkeypatch):
    """Make `lvd-juice try` a command that runs the given function."""

    def install(function):
        module = type(sys)("lvd_juice_test_command")
        module.command = click.command()(function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(frame.COMMANDS, "try", frame.COMMANDS["fit"]._replace(target=f"{module.__name__}:command"))

    monkeypatch.delenv("LVD_DEBUG", raising=False)
    return install


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("x.npy: found float64, wanted uint8"), 2, "error: x.npy: found float64, wanted uint8"),
        (LVDJuiceError("the teacher's loss is NaN"), 1, "error: the teacher's loss is NaN"),
        (JuliaError("DomainError with -1.0:\n  log of it"), 1, "error: DomainError with -1.0: log of it"),
        (OSError(28, "No space left on device", "run/x"), 1, "error: run/x: No space left on device"),
        (PermissionError(13, "Permission denied"), 1, "error: Permission denied"),
        (OSError("no number"), 1, "error: no number"),
        (
            click.BadParameter("found 3, wanted 4", param_hint="--n"),
            2,
            "error: Invalid value for --n: found 3, wanted 4 (see lvd-juice try --help)",
        ),
        (
            KeyError("latents"),
            1,
            "unexpected error: KeyError: 'latents' (run lvd-juice --debug ... for the traceback)",
        ),
        (MemoryError(), 1, "unexpected error: MemoryError (run lvd-juice --debug ... for the traceback)"),
        (KeyboardInterrupt(), 130, "interrupted: no file was left half written"),
    ],
)
def test_errors_are_one_line_and_a_status(command, capsys, error, status, line):
    def fail() -> None:
        raise error

    command(fail)
    assert frame.main(["try"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip("\n") == f"lvd-juice: {line}"


def test_success_is_silent_and_a_command_can_choose_its_status(command, capsys):
    command(lambda: None)
    assert frame.main(["try"]) == 0
    command(lambda: click.get_current_context().exit(1))
    assert frame.main(["try"]) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("way", ["option", "variable"])
def test_debug_shows_the_traceback_before_the_line(command, capsys, monkeypatch, way):
    def fail() -> None:
        raise InputError("x: bad")

    command(fail)
    if way == "variable":
        monkeypatch.setenv("LVD_DEBUG", "1")
    assert frame.main(["try"] if way == "variable" else ["--debug", "try"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "lvd-juice: error: x: bad"


def test_debug_covers_a_command_that_cannot_be_imported(capsys, monkeypatch):
    monkeypatch.setitem(frame.COMMANDS, "try", frame.COMMANDS["fit"]._replace(target="no_such_module:command"))
    assert frame.main(["--debug", "try"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ModuleNotFoundError: No module named 'no_such_module'" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["fti"], "No such command 'fti'"),
        (["--fast"], "No such option"),
        (["try", "extra"], "unexpected extra argument (extra) (see lvd-juice try --help)"),
    ],
)
def test_usage_errors(command, capsys, args, part):
    command(lambda: None)
    assert frame.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lvd-juice: error: ")
    assert part in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["fit", "", "-o", "run"], "'DATA'"),
        (["fit", "digits", "-o", ""], "'-o' / '--output'"),
        (["fit", "digits", "-o", "run", "--features", ""], "'--features'"),
        (["eval", "", "digits"], "'RUN'"),
        (["sample", "run", "-o", ""], "'-o' / '--output'"),
        (["inpaint", "run", "digits", "-o", "a.png", "--mask", ""], "'--mask'"),
    ],
)
def test_a_name_that_is_empty_is_none(capsys, tmp_path, monkeypatch, args, name):
    """As of a shell's variable that was never set: it is not the working directory."""
    monkeypatch.chdir(tmp_path)
    assert frame.main(args) == 2
    assert f"Invalid value for {name}: found '', wanted a" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_no_arguments_is_a_usage_error_with_help(capsys):
    assert frame.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: lvd-juice ")


def test_version(capsys):
    assert frame.main(["--version"]) == 0
    name, version = capsys.readouterr().out.split()
    assert name == "lvd-juice"
    assert version[0].isdigit()


def test_help_lists_every_command_and_imports_nothing_slow():
    script = (
        "import sys; from pyjuice_lvd.cli.main import main; main(['--help'])\n"
        "print(*sys.modules, file=sys.stderr, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for name, entry in frame.COMMANDS.items():
        assert name in done.stdout
        assert entry.help[:30] in done.stdout
    slow = {"torch", "sklearn", "juliacall", "numpy", "scipy", "matplotlib", "PIL", "rich", "pyjuice_lvd.settings"}
    assert not slow & set(done.stderr.split())


@pytest.mark.parametrize("name", frame.COMMANDS)
def test_every_command_loads_and_has_help(name, capsys):
    assert frame.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: lvd-juice {name} ")


def test_the_installed_program():
    program = Path(sys.executable).with_name("lvd-juice")
    done = subprocess.run([program, "nonsense"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lvd-juice: error: No such command 'nonsense' (see lvd-juice --help)\n"


def test_ctrl_c_in_a_run(tmp_path):
    with fake("try", "wait", tmp_path / "run") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == ""
    assert err.strip("\n") == f"lvd-juice: interrupted: {tmp_path}/run keeps what was done; continue it with --resume"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "settings.toml"]


def test_ctrl_c_while_modules_load(tmp_path):
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pyjuice_lvd.cli", "--help"],
        env=environment, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "lvd-juice: interrupted: no file was left half written\n"


def test_an_unexpected_error_in_a_process():
    with fake("try", "fail") as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == (
        "lvd-juice: unexpected error: RuntimeError: it broke in two (run lvd-juice --debug ... for the traceback)\n"
    )


def test_a_reader_that_goes_away():
    with fake("try", "lines") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_full_disk_behind_stdout():
    with Path("/dev/full").open("w") as full, fake("try", "print", stdout=full) as process:
        _, err = process.communicate()
    assert (process.returncode, err) == (1, "lvd-juice: error: No space left on device\n")


def test_json_is_one_object_on_one_line(capsys):
    result = {"method": "lvd", "bpd": np.float64(4.5), "std_error_bpd": math.inf, "protocol": PROTOCOL}
    emit(result, True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"method": "lvd", "bpd": 4.5, "std_error_bpd": None, "protocol": PROTOCOL}


def test_a_bpd_is_printed_with_its_protocol(capsys):
    result = {
        "method": "lvd",
        "bpd": 4.52123,
        "bpd_factorized": 6.95,
        "std_error_bpd": 0.0123,
        "params": 123456,
        "protocol": PROTOCOL,
    }
    emit(result, False)
    assert capsys.readouterr().out.splitlines() == [
        "method          lvd",
        "bpd             4.5212 ± 0.0123  (ycocg, whole images, lossless)",
        "bpd_factorized  6.9500  (ycocg, whole images, lossless)",
        "params          123,456",
    ]
    emit({"bpd": 4.1, "protocol": {"color": "ycc709", "crop": "16x16", "lossless": False}}, False)
    assert capsys.readouterr().out == "bpd  4.1000  (ycc709, top-left 16x16, LOSSY: compares with no lossless bpd)\n"


def test_shared_options(command):
    seen = {}

    @json_option
    @quiet_option
    @threads_option
    @device_option
    @seed_option
    def keep(**options) -> None:
        seen.update(options)

    command(keep)
    assert frame.main(["try"]) == 0
    assert seen == {"as_json": False, "quiet": False, "threads": None, "device": None, "seed": None}
    assert frame.main(["try", "--json", "--quiet", "--threads", "2", "--device", "cpu", "--seed", "7"]) == 0
    assert seen == {"as_json": True, "quiet": True, "threads": 2, "device": "cpu", "seed": 7}
    for bad in ("--threads -1", "--device gpu", "--seed 4294967296", "--seed x"):
        assert frame.main(["try", *bad.split()]) == 2


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which `lvd` is the command line."""
    script = 'lvd() { exec "$0" -m pyjuice_lvd.cli "$@"; }; ' + command
    return subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True, timeout=120)


CLOSED = "lvd-juice: error: standard output: closed\n"
NO_COMMAND = "lvd-juice: error: No such command 'nonsense' (see lvd-juice --help)\n"


@pytest.mark.parametrize(
    ("command", "status", "out", "err"),
    [
        ("lvd --help >&-", 1, "", CLOSED),
        ("lvd --version >&-", 1, "", CLOSED),
        ("lvd --version 2>&-", 0, "lvd-juice", ""),
        ("lvd --version <&- 2>&-", 0, "lvd-juice", ""),
        ("lvd --version 2>/dev/full", 0, "lvd-juice", ""),
        ("lvd --version >/dev/full", 1, "", "lvd-juice: error: No space left on device\n"),
        ("lvd nonsense >&-", 2, "", NO_COMMAND),
        ("lvd nonsense 2>&-", 2, "", ""),
        ("lvd nonsense 2>/dev/full", 2, "", ""),
        ("lvd nonsense <&- >&- 2>&-", 2, "", ""),
    ],
)
def test_closed_and_full_streams(command: str, status: int, out: str, err: str) -> None:
    ran = shell(command)
    assert (ran.returncode, ran.stdout.split(" ")[0], ran.stderr) == (status, out, err)


def test_a_result_is_given_though_nobody_can_be_told_of_the_work() -> None:
    # Julia starts in a process whose standard error is closed; the next file that is opened is not taken for it.
    ran = shell("lvd doctor --json <&- 2>&-")
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["usable"] is True


def test_work_goes_on_when_the_reader_of_its_logs_is_gone() -> None:
    code = (
        "from pyjuice_lvd.cli import streams; import sys; streams.prepare(); print('x', file=sys.stderr); print('on')"
    )
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as nobody:
        ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=nobody, text=True)
    assert (ran.returncode, ran.stdout) == (0, "on\n")
