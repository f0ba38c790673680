"""Other systems on the same circuit with the same parameters, where they are installed. None of them is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.bench.cases import (
    CATEGORICAL,
    PSEUDOCOUNT,
    STEP_SIZE,
    SUM,
    TOLERANCE,
    Case,
    Effort,
    ParityError,
    engine_of,
    milliseconds,
    relative_error,
)
from pyjuice_lvd.circuit import Circuit


def time_peers(case: Case, effort: Effort) -> list[dict[str, Any]]:
    """Time EM steps and likelihoods of a case in cirkit, if it is here, after it has given the same answers as ours.

    On one thread. Raises ParityError where its log-likelihoods, or those after one EM step, are not ours.
    """
    try:
        name = f"cirkit {version('libcirkit')}"
    except PackageNotFoundError:
        return []
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _no_clamp():
            return [{"peer": name, "case": case.name, **_time_cirkit(case, effort)}]
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _no_clamp() -> Iterator[None]:
    """Lift cirkit's floor of -708 nats, below which its answers are wrong: an image has thousands."""
    from cirkit.backend.torch import semiring

    floor, semiring.LOG_CLAMP_MIN = semiring.LOG_CLAMP_MIN, -1e30
    try:
        yield
    finally:
        semiring.LOG_CLAMP_MIN = floor


def _time_cirkit(case: Case, effort: Effort) -> dict[str, Any]:
    import torch
    from cirkit.backend.torch.em_optimizer import EM

    circuit, X = case.circuit(), case.rows(case.batch_size)
    network, x = _cirkit(case, circuit), torch.from_numpy(X.astype(np.int64))
    optimiser = EM(network, lr=STEP_SIZE, pseudocount=PSEUDOCOUNT)

    def em_step() -> None:
        optimiser.zero_grad()
        network(x).sum().backward()
        optimiser.step()

    def likelihood() -> npt.NDArray[np.float32]:
        with torch.no_grad():
            values: npt.NDArray[np.float32] = network(x).flatten().numpy()
        return values

    parity = {"log_likelihood": relative_error(likelihood(), circuit.log_likelihood(X))}
    em_step()
    circuit.fit_em(X, epochs=1, batch_size=len(X), step_size=STEP_SIZE, pseudocount=PSEUDOCOUNT)
    parity["em_step"] = relative_error(likelihood(), circuit.log_likelihood(X))
    for what, error in parity.items():
        if not error < TOLERANCE:
            raise ParityError(
                f"case {case.name!r}: cirkit's {what} differs by {error:.1e}, wanted below {TOLERANCE:.0e}"
            )
    return {
        "parity": parity,
        "em_step_ms": milliseconds(_timings(em_step, effort)),
        "likelihood_ms": milliseconds(_timings(likelihood, effort)),
    }


def _timings(work: Callable[[], object], effort: Effort) -> npt.NDArray[np.float64]:
    """Give the seconds of each run, after one that is not counted."""
    work()
    seconds: list[float] = []
    while sum(seconds) < effort.rounds * effort.share or len(seconds) < effort.rounds:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return np.array(seconds)


def _cirkit(case: Case, circuit: Circuit) -> Any:
    """Compile the same HCLT for cirkit, layer by layer, on linear parameters, which its EM asks for."""
    from cirkit.pipeline import PipelineContext
    from cirkit.symbolic.circuit import Circuit as Symbolic
    from cirkit.symbolic.initializers import ConstantTensorInitializer
    from cirkit.symbolic.layers import CategoricalLayer, HadamardLayer, SumLayer
    from cirkit.symbolic.parameters import Parameter, TensorParameter
    from cirkit.utils.scope import Scope

    def parameter(values: npt.NDArray[np.float32]) -> Any:
        return Parameter.from_input(TensorParameter(*values.shape, initializer=ConstantTensorInitializer(values)))

    layers: list[Any] = []
    inputs: dict[Any, list[Any]] = {}
    parent = case.parent()
    top: dict[int, Any] = {}
    for i, table, weights in _layers(case, circuit):
        below = CategoricalLayer(Scope([i]), case.num_latents, num_categories=case.num_cats, probs=parameter(table))
        layers.append(below)
        if messages := [top[int(j)] for j in np.flatnonzero(parent == i)]:
            product = HadamardLayer(case.num_latents, arity=1 + len(messages))
            layers.append(product)
            inputs[product] = [below, *messages]
            below = product
        top[i] = SumLayer(case.num_latents, len(weights), weight=parameter(weights))
        layers.append(top[i])
        inputs[top[i]] = [below]
    context = PipelineContext(backend="torch", semiring="lse-sum", fold=True, optimize=True)
    return context.compile(Symbolic(layers, inputs, [layers[-1]]))


def _layers(case: Case, circuit: Circuit) -> Iterator[tuple[int, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Give each variable, children before parents, with its inputs' table (latents, categories) and sums' weights."""
    arrays, latents = engine_of(circuit).arrays(), case.num_latents
    first_inputs = np.flatnonzero(arrays["kind"] == CATEGORICAL)[::latents]
    sums = np.flatnonzero(arrays["kind"] == SUM)
    for place, unit in enumerate(first_inputs):
        start = int(arrays["param_start"][unit]) - 1
        table = arrays["leaf"][start : start + latents * case.num_cats].reshape(case.num_cats, latents).T
        own = sums[place * latents : (place + 1) * latents]
        edges = arrays["child_start"][own, None] - 1 + np.arange(latents)
        yield int(arrays["variable"][unit]) - 1, np.ascontiguousarray(table), arrays["weight"][edges]
