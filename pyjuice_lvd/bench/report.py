"""The benchmark's result as text."""

from __future__ import annotations

from typing import Any

from pyjuice_lvd.report.tables import lay_out, table


def as_text(result: dict[str, Any]) -> str:
    """Lay out what `run_bench` found, for people."""
    machine = result["machine"]
    tables = (
        (
            ("circuit", "V, K, C, batch", "EM step ms", "likelihood ms", "GFLOP/s", "sgemm", "ratio", "parity"),
            [
                (
                    case["name"],
                    "{num_vars}, {num_latents}, {num_cats}, {batch_size}".format(**case),
                    *_speed(case),
                    f"{case['em_step_gflops']:.0f}",
                    f"{case['sgemm_gflops']:.0f}",
                    f"{case['em_step_of_sgemm']:.2f}",
                    _parity(case),
                )
                for case in result["cases"]
            ],
        ),
        (
            ("peer", "circuit", "EM step ms", "likelihood ms", "parity"),
            [(peer["peer"], peer["case"], *_speed(peer), _parity(peer)) for peer in result["peers"]],
        ),
        (
            ("samples", "EM us a sample", "likelihood us a sample"),
            [
                (f"{n['samples']:,}", f"{n['em_us_per_sample']:.2f}", f"{n['likelihood_us_per_sample']:.2f}")
                for n in result["samples"]["counts"]
            ],
        ),
        (
            ("pruned circuit", "edges kept", "edges", "EM step ms", "likelihood ms", "of the dense step", "parity"),
            [
                (e["name"], f"{e['keep']:.0%}", f"{e['edges']:,}", *_speed(e), f"{e['of_dense']:.2f}", _parity(e))
                for e in result["edges"]
            ],
        ),
        (
            ("threads", "EM step ms", "speed-up"),
            [(t["threads"], _times(t["em_step_ms"]), f"{t['speedup']:.2f}") for t in result["threads"]],
        ),
        (
            ("circuit", "EM job MiB", "parameters MiB", "of twice the parameters and a tile a thread"),
            [
                (name, _mebibytes(m["job_bytes"]), _mebibytes(m["parameter_bytes"]), f"{m['of_bound']:.2f}")
                for name, m in result["memory"].items()
            ],
        ),
        (("start-up", "s"), [(what, f"{seconds:.1f}") for what, seconds in result["startup"].items()]),
        (
            ("target", "wanted", "found", "met"),
            [(t["what"], t["wanted"], f"{t['found']:.3g}", "yes" if t["met"] else "NO") for t in result["targets"]],
        ),
    )
    return lay_out(
        f"{machine['cpu']}, {machine['cores']} cores; Julia {machine['julia']} ({machine['bridge']}),"
        f" {machine['threads']} thread(s); circuits on {result['device']}; sgemm on one CPU thread,"
        f" {machine['blas']}.\n"
        f"Times are the least of many (and the median). GFLOP/s: {result['flops']}.",
        *(table(names, rows) for names, rows in tables if rows),
    )


def _speed(entry: dict[str, Any]) -> tuple[str, str]:
    return _times(entry["em_step_ms"]), _times(entry["likelihood_ms"])


def _times(milliseconds: dict[str, float]) -> str:
    return f"{milliseconds['min']:.2f} ({milliseconds['median']:.2f})"


def _parity(entry: dict[str, Any]) -> str:
    return f"{max(entry['parity'].values()):.0e}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f}"
