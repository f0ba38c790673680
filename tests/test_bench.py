"""`lvd-juice bench`: parity before speed, and what it reports, on circuits small enough for a test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import distributions
from typing import Any

import numpy as np
import pytest
from commands import lvd_juice

from pyjuice_lvd import julia
from pyjuice_lvd.bench import Case, ParityError, cases, run, scaling
from pyjuice_lvd.bench.cases import Effort, check_parity, sum_edges, time_circuit
from pyjuice_lvd.bench.peers import time_peers
from pyjuice_lvd.cli.main import main

SMALL = Case("small", num_vars=6, num_latents=4, num_cats=3, batch_size=70)
EFFORT = Effort(rounds=1, share=0.001)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything small, and let `bench` run in this process, whatever the number of its threads."""
    info = julia.start()
    monkeypatch.setattr(julia, "start", lambda **_: info)
    names = ("image", "patch", "128 latents", "256 latents")
    monkeypatch.setattr(run, "CASES", tuple(Case(name, 6, 4, 3, 70) for name in names))
    monkeypatch.setattr(run, "PRUNED", (Case("sparse", 8, 8, 3, 64), Case("wide inputs", 8, 4, 20, 16)))
    monkeypatch.setattr(run, "STREAM", SMALL)
    monkeypatch.setattr(run, "SAMPLES", (300, 900, 1800))
    monkeypatch.setattr(run, "Effort", lambda rounds, share: EFFORT)
    monkeypatch.setattr(run, "time_threads", lambda *_, **__: [{"threads": 1, "em_step_ms": TIMES, "speedup": 1.0}])
    monkeypatch.setattr(run, "time_startup", lambda **_: {"first_em_step_s": 1.0})
    monkeypatch.setattr(cases, "SGEMM_SIZE", 16)


TIMES = {"min": 1.0, "median": 1.5}


@pytest.mark.usefixtures("small")
def test_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert "bench: done" in err
    keys = "machine device quick flops tolerance cases peers samples edges threads memory startup targets seconds"
    assert set(result) == set(keys.split())
    assert result["device"] == "cpu"
    assert [case["name"] for case in result["cases"]] == ["image", "patch", "128 latents", "256 latents"]
    for case in result["cases"]:
        assert case["edges"] == 5 * 16 + 4
        assert max(case["parity"].values()) < result["tolerance"] == 1e-5
        assert 0 < case["em_step_ms"]["min"] <= case["em_step_ms"]["median"]
        rate = 6 * case["edges"] * case["batch_size"] / (1e6 * case["em_step_ms"]["min"])
        assert case["em_step_gflops"] == pytest.approx(rate)
        assert case["em_step_of_sgemm"] == pytest.approx(rate / case["sgemm_gflops"])
    assert [count["samples"] for count in result["samples"]["counts"]] == [300, 900]
    assert [(part["name"], part["keep"]) for part in result["edges"]] == [
        ("sparse", 1.0), ("sparse", 0.1), ("wide inputs", 1.0), ("wide inputs", 0.1),
    ]  # fmt: skip
    assert result["edges"][1]["edges"] <= 0.2 * result["edges"][0]["edges"]
    named = [target["what"] for target in result["targets"] if "10 %" in target["what"]]
    assert named == [f"EM step with 10 % of the edges, {name}, of the dense one" for name in ("sparse", "wide inputs")]
    meets = {"<=": float.__le__, ">=": float.__ge__, ">": float.__gt__}
    for target in result["targets"]:
        sign, bound = target["wanted"].split()
        assert target["met"] is meets[sign](target["found"], float(bound)), target
    met = {target["what"]: target["met"] for target in result["targets"]}
    assert met["first EM step of a process, s"] is True  # 1 s of 10, as given above


@pytest.mark.usefixtures("small")
def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("sgemm", "edges x samples", "parity", "128 latents", "edges kept", "first_em_step_s", "target"):
        assert words in out.replace("edges of sums", "edges")


@pytest.mark.usefixtures("small")
def test_on_a_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call: Callable[..., Any] = julia.call
    jobs: list[tuple[object, ...]] = []

    def noted(name: str, *arguments: object) -> Any:
        if name == "em_job":
            jobs.append(arguments)
        return call(name, *arguments)

    monkeypatch.setattr(julia, "call", noted)
    assert main(["bench", "--quick", "--json", "--quiet", "--device", "array"]) == 0
    result = json.loads(capsys.readouterr()[0])
    assert result["device"] == "array"
    assert all(isinstance(arguments[-1], julia.Handle) for arguments in jobs)  # the backend, which the CPU's have not
    for timed in (*result["cases"], *result["edges"]):
        assert max(timed["parity"].values()) < result["tolerance"]
        assert timed["em_step_ms"]["min"] > 0 < timed["likelihood_ms"]["min"]
    assert [count["samples"] for count in result["samples"]["counts"]] == [300, 900]
    assert not any(result[part] for part in ("peers", "threads", "memory", "startup", "targets"))
    assert main(["bench", "--quick", "--quiet", "--device", "array"]) == 0
    out = capsys.readouterr()[0]
    assert "circuits on array" in out
    assert "edges kept" in out
    assert "target" not in out


@pytest.mark.usefixtures("small")
def test_devices_that_are_not_there() -> None:
    ran = lvd_juice("bench", "--device", "tpu", check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("lvd-juice: error: Invalid value for '--device': 'tpu' is not one of 'cpu'")
    ran = lvd_juice("bench", "--device", "cuda", "--quiet", check=False)
    if ran.returncode == 0:
        pytest.skip("CUDA.jl works here")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("lvd-juice: error: device: found ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("wrong", ["reference_log_likelihood", "reference_step"])
def test_no_timing_without_parity(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call: Callable[..., Any] = julia.call

    def distorted(name: str, *arguments: object) -> Any:
        result = call(name, *arguments)
        if name != f"Bench.{wrong}":
            return result
        return result * (1 + 1e-4) if isinstance(result, np.ndarray) else (result[0] * (1 + 1e-4), result[1])

    monkeypatch.setattr(julia, "call", distorted)
    assert main(["bench", "--json", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    what = "log_likelihood" if wrong == "reference_log_likelihood" else "em_step"
    assert err == f"lvd-juice: error: case 'image': relative error 1.0e-04 of {what}, wanted below 1e-05\n"


def test_parity_leaves_the_circuit_as_it_was() -> None:
    circuit = SMALL.circuit()
    before = [array.copy() for array in circuit.parameters()]
    errors = check_parity("small", circuit, SMALL.rows(20))
    assert set(errors) == {"log_likelihood", "em_step"}
    for array, values in zip(circuit.parameters(), before, strict=True):
        np.testing.assert_array_equal(array, values)
    circuit.parameters()[0][:] = np.nan
    with pytest.raises(ParityError, match="relative error nan of log_likelihood"):
        check_parity("small", circuit, SMALL.rows(20))


def test_timing_is_of_steps_that_train() -> None:
    circuit, X = SMALL.circuit(), SMALL.rows(70)
    before = circuit.log_likelihood(X).mean()
    times = time_circuit(circuit, X, EFFORT)
    assert circuit.log_likelihood(X).mean() > before
    assert times["edges"] == sum_edges(circuit)


def test_processes_of_their_own() -> None:
    began = time.monotonic()
    (found,) = scaling.time_threads(SMALL, (1,), EFFORT, turns=1)
    took = time.monotonic() - began
    assert (found["threads"], found["speedup"]) == (1, 1.0)
    assert 0 < found["em_step_ms"]["min"] <= found["em_step_ms"]["median"] < 1000 * took
    began = time.monotonic()
    startup = scaling.time_startup(cold=False)
    # All of the process but its end: Julia's start is in it.
    assert 0.3 * (time.monotonic() - began) < startup["first_em_step_s"] < time.monotonic() - began


def test_memory_is_that_of_the_job() -> None:
    found = scaling.measure_memory(SMALL)
    assert found["job_bytes"] > 2 * found["parameter_bytes"] + found["tile_bytes"]
    bound = 2 * found["parameter_bytes"] + found["tile_bytes"] * julia.start().threads
    assert found["of_bound"] == pytest.approx((found["job_bytes"] + found["step_allocates_bytes"]) / bound)


def test_peers_agree_where_they_are_installed() -> None:
    found = time_peers(SMALL, EFFORT)
    if not list(distributions(name="libcirkit")):
        assert found == []
    else:
        assert max(found[0]["parity"].values()) < 1e-5
