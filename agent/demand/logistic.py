"""Ridge logistic regression by Newton's method. Pure, deterministic, numpy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agent.demand.arrays import Floats, chance

_BLOCK = 8192  # rows expanded at a time: bounds the memory of a fit
_ROUNDS = 12
_ENOUGH = 1e-5  # relative gain of a round below which a fit is done

Weights = NDArray[np.float64]
Expand = Callable[[Floats], Floats]


def fit(rows: Floats, happened: Floats, counts: Floats, expand: Expand, start: Weights, ridge: float) -> Weights:
    """Return the weights of the columns that `expand` makes of `rows`; the last one is a constant and not penalised.

    A row counts `counts` times. Minimises the negative log-likelihood plus ridge / 2 times the squared weights, beginning at
    `start`; a step is halved until it does not raise that.
    """
    weights, penalty = start, np.full(len(start), ridge)
    penalty[-1] = 1e-6
    loss, gradient, curvature = _evaluate(rows, happened, counts, expand, weights, penalty)
    for _ in range(_ROUNDS):
        step = np.linalg.solve(curvature, gradient)
        size, found = 1.0, _evaluate(rows, happened, counts, expand, weights - step, penalty)
        while found[0] > loss and size > 0.01:
            size /= 2
            found = _evaluate(rows, happened, counts, expand, weights - size * step, penalty)
        if not found[0] <= loss:
            return weights
        gain, weights = loss - found[0], weights - size * step
        loss, gradient, curvature = found
        if gain < _ENOUGH * loss:
            break
    return weights


def probability(columns: Floats, weights: Weights) -> Floats:
    """Return the probabilities of expanded rows."""
    return chance(columns @ weights.astype(np.float32))


def _evaluate(
    rows: Floats, happened: Floats, counts: Floats, expand: Expand, weights: Weights, penalty: Weights
) -> tuple[float, Weights, Weights]:
    """Return loss, gradient and curvature at these weights."""
    loss = float(penalty @ (weights * weights)) / 2
    gradient, curvature = penalty * weights, np.diag(penalty)
    for first in range(0, len(rows), _BLOCK):
        block = slice(first, first + _BLOCK)
        columns = expand(rows[block])
        expected = probability(columns, weights)
        likely = np.where(happened[block] > 0, expected, 1 - expected)
        loss -= float(counts[block] @ np.log(np.maximum(likely, 1e-12)))
        gradient += columns.T @ (counts[block] * (expected - happened[block]))
        curvature += (columns * (counts[block] * expected * (1 - expected))[:, None]).T @ columns
    return loss, gradient, curvature
