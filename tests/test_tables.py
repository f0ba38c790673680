"""Tables and figures as text: whole in files and pipes, fitted to a terminal."""

from __future__ import annotations

import json
import re
import sys

import pytest

from pyjuice_lvd.cli.options import emit
from pyjuice_lvd.report.tables import facts, figure, lay_out, table, text

LONG = " ".join(f"word{number}" for number in range(2000))


def test_elsewhere_than_on_a_terminal_nothing_is_cut_or_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    said = lay_out(
        "a [bold]note[/bold] :smile:", facts([("short", "x"), ("a longer name", LONG)]), table(("a", "b"), [])
    )
    assert said.splitlines() == [
        "a [bold]note[/bold] :smile:", "", "short          x", f"a longer name  {LONG}", "", "a  b",
    ]  # fmt: skip


def test_numbers_stand_below_one_another() -> None:
    rows = [("image", 1.25, "[red]"), ("patch", 123.5, "")]
    assert lay_out(table(("circuit", "ms", "name"), rows)).splitlines() == [
        "circuit     ms   name",
        "image     1.25  [red]",
        "patch    123.5",
    ]


def test_on_a_terminal_lines_fit_and_no_text_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    what = f"/a/path/without/a/place/to/break/{'x' * 60} and words"
    said = lay_out(facts([("name", what)]), table(("circuit", "one", "two"), [("c" * 30, "1" * 30, "2" * 30)]))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert said != plain  # titles are bold
    assert max(map(len, plain.splitlines())) <= 40
    joined = re.sub(r"\s", "", plain)
    assert re.sub(r"\s", "", what) in joined
    assert [joined.count(character) for character in "12"] == [30, 30]


def test_a_result_is_laid_out_or_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "bpd": 3.5, "std_error_bpd": 0.25, "bpd_factorized": 7.0, "n": 1234, "seed": None,
        "protocol": {"color": "ycc709", "crop": "8x4", "lossless": False}, "pictures": ["a.png", "b.png"],
    }  # fmt: skip
    emit(result, as_json=False)
    lossy = "(ycc709, top-left 8x4, LOSSY: compares with no lossless bpd)"
    assert capsys.readouterr().out.splitlines() == [
        f"bpd             3.5000 ± 0.2500  {lossy}",
        f"bpd_factorized  7.0000  {lossy}",
        "n               1,234",
        "seed            none",
        "pictures        a.png, b.png",
    ]
    emit(result, as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == result


def test_figures_and_settings() -> None:
    assert figure(-2037.07, 1, 34.25) == "-2,037.1 ± 34.2"
    assert figure(3.14159, 2, float("nan")) == "3.14"
    assert figure(42.9, 1, None, "+") == "+42.9"
    assert figure(None, 4, None) == "not finite"
    assert [text(value) for value in (True, None, "", 1e-30, 0.1, 2.5e7, float("-inf"), [4, 4], {"a": 1.0})] == [
        "yes", "none", "none", "1e-30", "0.1", "25,000,000", "-inf", "4, 4", "a=1",
    ]  # fmt: skip
