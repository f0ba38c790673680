"""Progress: what is shown where, and that a terminal is left as it was found."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from pyjuice_lvd.progress import SILENT, PlainProgress, RichProgress, make_progress

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(interval: float = 5.0) -> tuple[PlainProgress, Clock, io.StringIO]:
    clock, stream = Clock(), io.StringIO()
    return PlainProgress(stream, interval=interval, clock=clock), clock, stream


def test_plain_lines_have_start_rate_time_left_and_end():
    progress, clock, stream = plain()
    with progress.stage("teacher", 20, "epochs") as stage:
        for epoch in range(20):
            clock.now += 2.0
            stage.advance(bpd=5.0 - epoch / 10)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "teacher: started, 20 epochs"
    assert lines[1] == "teacher: 3/20 epochs, 0.5 epochs/s, 34 s left, bpd=4.8"
    assert lines[-1] == "teacher: done in 40 s, 20/20 epochs, bpd=3.1"


def test_time_left_goes_by_the_later_half():
    progress, clock, stream = plain(interval=60.0)
    with progress.stage("EM", 1000) as stage:
        clock.now += 30.0  # Julia compiles
        stage.update(completed=2)
        for done in range(3, 501):
            clock.now += 0.25
            stage.update(completed=done)
    assert ": 122/1,000, 4/s, 3 min 40 s left" in stream.getvalue()


def test_what_a_resumed_run_had_done_before_is_no_speed():
    progress, clock, stream = plain()
    with progress.stage("EM", 100) as stage:
        stage.update(completed=90)
        for _ in range(3):
            clock.now += 4.0
            stage.advance()
    assert "92/100, 0.25/s, 32 s left" in stream.getvalue()


def test_plain_lines_are_at_most_one_every_few_seconds():
    progress, clock, stream = plain(interval=5.0)
    with progress.stage("circuits", 1000) as stage:
        for done in range(1000):
            clock.now += 0.05
            stage.update(completed=done + 1)
    between = stream.getvalue().splitlines()[1:-1]
    assert 8 <= len(between) <= 10  # 50 seconds of work


def test_plain_says_where_a_stage_stopped_and_lets_the_error_through():
    progress, clock, stream = plain()

    def work() -> None:
        with progress.stage("prior", 10, "epochs") as stage:
            stage.advance(4)
            clock.now += 3661
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert stream.getvalue().splitlines()[-1] == "prior: stopped after 1 h 01 min, 4/10 epochs"


def test_plain_stages_nest_and_follow_one_another():
    progress, _, stream = plain()
    with progress.stage("circuits", 2) as outer:
        for cluster in range(2):
            with progress.stage(f"circuit {cluster}", 0) as inner:
                inner.advance(0)
            outer.advance()
    progress.log("all [bold]done")
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("circuits", "circuit 0", "circuit 0", "circuit 1", "circuit 1", "circuits", "all [bold]done")
    ]


def test_silent_shows_nothing(capfd):
    with SILENT.stage("teacher", 3) as stage:
        stage.advance(bpd=1.0)
        stage.update(completed=3)
    SILENT.log("hello")
    assert capfd.readouterr() == ("", "")


def test_make_progress_chooses(monkeypatch):
    assert make_progress(quiet=True) is SILENT
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(make_progress(quiet=False), PlainProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress(quiet=False), RichProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(quiet=False), PlainProgress)


def terminal() -> tuple[RichProgress, io.StringIO]:
    stream = io.StringIO()
    return RichProgress(Console(file=stream, force_terminal=True, width=120, height=30)), stream


def visible(text: str) -> str:
    """What stays after the escape sequences that erase lines and move the cursor up are carried out."""
    rows: list[str] = [""]
    row = 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]", text):
        if part == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif part.endswith("A") and part.startswith("\x1b"):
            row = max(row - int(part[2:-1]), 0)
        elif part == "\x1b[2K":
            rows[row] = ""
        elif not part.startswith("\x1b") and part != "\r":
            rows[row] += part
    return "\n".join(rows)


def test_bars_show_stage_rate_and_time_left_and_end_as_one_line():
    progress, stream = terminal()
    with progress.stage("teacher [x]", 4, "epochs") as stage:
        stage.advance(2, bpd=4.5)
        time.sleep(0.15)  # the bars are drawn ten times a second
    text = stream.getvalue()
    assert "teacher [x]" in text
    assert re.search(r"2/4 epochs, [\d,.e+]+ epochs/s, 0\.0 s left, bpd=4\.5", text)
    assert re.fullmatch(r"\n*teacher \[x\]: done in 0\.\d s, 2/4 epochs, bpd=4\.5\n*", visible(text))


def test_nested_bars_leave_one_line_and_the_cursor():
    progress, stream = terminal()
    for name in ("first", "second"):
        with progress.stage(name, 2) as outer:
            for part in range(2):
                with progress.stage(f"part {part}", 3) as inner:
                    inner.advance(3)
                outer.advance()
            progress.log("a [bold]note")
    lines = [line.split(":")[0] for line in visible(stream.getvalue()).split("\n") if line]
    assert lines == ["a [bold]note", "first", "a [bold]note", "second"]
    assert stream.getvalue().rfind(SHOW_CURSOR) > stream.getvalue().rfind(HIDE_CURSOR)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_bars_leave_the_terminal_clean_after_an_error(error):
    progress, stream = terminal()
    stderr = sys.stderr

    def work() -> None:
        with progress.stage("circuits", 2), progress.stage("circuit 0", 3) as inner:
            inner.advance()
            raise error

    with pytest.raises(error):
        work()
    assert sys.stderr is stderr
    assert stream.getvalue().rfind(SHOW_CURSOR) > stream.getvalue().rfind(HIDE_CURSOR) >= 0
    with progress.stage("again", 1) as stage:  # still usable
        stage.advance()
    lines = [line for line in visible(stream.getvalue()).split("\n") if line]
    assert [line.split(" after")[0] for line in lines[:2]] == ["circuit 0: stopped", "circuits: stopped"]
    assert lines[2].startswith("again: done")


def test_bars_leave_stdout_alone():
    progress, _ = terminal()
    stdout = sys.stdout
    with progress.stage("teacher", 1):
        assert sys.stdout is stdout


def test_ctrl_c_on_a_real_terminal_gives_the_cursor_back():
    script = (
        "import time\n"
        "from pyjuice_lvd.progress import make_progress\n"
        "with make_progress(False).stage('teacher', 9) as stage:\n"
        "    stage.advance(); print('ready', flush=True); time.sleep(60)\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        text = b""
        while chunk := _read(ours):
            text += chunk
        assert process.stdout.read() == b""
    os.close(ours)
    shown = text.decode()
    assert shown.rfind(SHOW_CURSOR) > shown.rfind(HIDE_CURSOR) >= 0
    assert "teacher: stopped after" in shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux's end of file on a terminal whose other side is closed
        return b""
