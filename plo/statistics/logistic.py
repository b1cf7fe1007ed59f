"""Logistic regression with shares as outcomes, which ratings and style control are fitted by."""

import numpy as np
from scipy import optimize, special

from plo.statistics.intervals import Array

RIDGE = 1e-6  # penalty per squared coefficient, without which separable outcomes have no finite maximum


def logistic(features: Array, outcomes: Array, weights: Array | None = None, *, ridge: float = RIDGE) -> Array:
    """Return the coefficients w of the logistic regression P(win) = sigmoid(x . w), without an intercept.

        w = argmin sum_i weight_i [log(1 + e^(x_i . w)) - y_i x_i . w] + ridge |w|^2 / 2

    With one column per player, +1 for the first and -1 for the second of a game, it is the Bradley-Terry model, in which the
    ridge chooses the ratings whose mean is 0.

    Args:
        features: [games, columns].
        outcomes: [games], 1 for a win, 0 for a loss, 1/2 for a draw, or any share between.
        weights: [games], default 1.

    Returns:
        [columns]. Where the outcomes are separable, as when a player wins every game, they are large and not meaningful.
    """
    x, y = np.asarray(features, dtype=float), np.asarray(outcomes, dtype=float)
    each = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=float)

    def loss(w: Array) -> float:
        z = x @ w
        return float(each @ (np.logaddexp(0, z) - y * z) + ridge * (w @ w) / 2)

    def gradient(w: Array) -> Array:
        return x.T @ (each * (special.expit(x @ w) - y)) + ridge * w

    def hessian(w: Array) -> Array:
        p = special.expit(x @ w)
        return (x * (each * p * (1 - p))[:, None]).T @ x + ridge * np.eye(x.shape[1])

    found = optimize.minimize(
        loss, np.zeros(x.shape[1]), jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-9}
    )
    return np.asarray(found.x, dtype=float)
