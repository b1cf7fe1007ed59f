"""Checks of a Bregman generator: h is strictly convex, the loss is its definition, least at the data's ratio.

The loss is least there for this reason. A pair (a, b) with p = P(a preferred) is labelled a > b with p, ratio R, and b > a with
1 - p, ratio 1/R. With L(R) = h'(R) R - h(R) - h'(1/R), where dL/dR = R h''(R) + h''(1/R) / R^2, its population loss

    p L(R) + (1-p) L(1/R)   has the derivative   (p R - (1-p)) (h''(R) + h''(1/R) / R^3).

The second factor is positive where h is strictly convex: one minimum, at R = (1-p)/p = R_data. (BPO, arXiv 2505.19601.)
"""

import torch
from torch import Tensor

from plo.losses import Loss
from plo.losses.generators import Generator, get_generator
from plo.verify.check import FAILED, Check, judge, verdict

LOG_R = torch.linspace(-6.9, 6.9, 139, dtype=torch.float64)  # R from 1e-3 to 1e3
R_DATA = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)


def generator_of(loss: Loss) -> Generator | None:
    """Return the generator that a loss was configured with; None for a loss without a generator."""
    if "generator" not in loss.params:
        return None
    offered = {key: loss.params[key] for key in ("lam", "s") if key in loss.params}
    return get_generator(loss.params["generator"], of=loss.target, **offered)


def generator_checks_of(loss: Loss) -> list[Check]:
    """Run the checks of the generator that a loss was configured with; none where it has no generator."""
    generator = generator_of(loss)
    return generator_checks(generator) if generator else []


def generator_checks(generator: Generator) -> list[Check]:
    """Run all checks of a generator: convexity, monotone h', closed form, minimum at R_data."""
    return [convex(generator), monotone(generator), closed_form(generator), stationary(generator)]


def convex(generator: Generator) -> Check:
    """Check that h''(R) > 0, by autodiff, for R from 1e-3 to 1e3."""
    R = LOG_R.exp().requires_grad_()
    slope = torch.autograd.grad(generator.h(R).sum(), R, create_graph=True)[0]
    second = torch.autograd.grad(slope.sum(), R)[0] if slope.requires_grad else torch.zeros_like(R)
    return _check_positive(
        "h convex",
        second,
        R.detach(),
        "h'' = ",
        "least h''(R), R from 1e-3 to 1e3: h is strictly convex",
        "h must be strictly convex on R > 0 to define a divergence.",
    )


def monotone(generator: Generator) -> Check:
    """Check that h' rises along the grid, by chords of h, without a second derivative."""
    R = LOG_R.exp()
    chords = generator.h(R).diff() / R.diff()  # slopes of h between neighbours, which rise where h' does
    rise = chords.diff() / torch.maximum(chords[1:].abs(), chords[:-1].abs()).clamp(min=1e-300)
    return _check_positive(
        "h' rising",
        rise,
        R[1:],
        "",
        "least relative rise of h's slope between neighbours 10% apart",
        "h' must rise strictly; h may be miswritten or lose digits.",
    )


def _check_positive(name: str, values: Tensor, R: Tensor, symbol: str, meaning: str, remedy: str) -> Check:
    lowest = int(values.nan_to_num(nan=-torch.inf).argmin())
    least, where = float(values[lowest]), f"R = {float(R[lowest]):.3g}"
    positive = bool((values > 0).all() and values.isfinite().all())
    return judge(positive, name, f"{symbol}{least:.2g}, above 0", meaning, where, remedy, {"least": least})


def closed_form(generator: Generator) -> Check:
    """Check that the loss is h'(R)R - h(R) - h'(1/R), by autodiff in float64, constant included."""
    ours, defined = generator.loss(LOG_R), generator.definition(LOG_R)
    error = ((ours - defined).abs() / defined.abs().clamp(min=1)).nan_to_num(nan=float("inf"))
    worst = int(error.argmax())
    found = f"closed form {float(ours[worst]):.6g}, definition {float(defined[worst]):.6g}"
    where = f"R = {float(LOG_R[worst].exp()):.3g}: {found}"
    meaning = "the loss is h'(R) R - h(R) - h'(1/R)"
    if generator.closed_form is None:
        meaning += " (no closed form registered: it is the definition)"
    remedy = "work the closed form out again, or register h alone: the definition is then used."
    return verdict("closed form", float(error.max()), 1e-8, "relative", meaning, where, remedy)


def stationary(generator: Generator) -> Check:
    """Check that the population loss with P(a preferred) = 1 / (1 + R_data) is least at R_data.

    Measured: the largest distance in nats between log R_data and where the derivative changes sign; infinite where it has
    another sign somewhere on R_data * [1e-2, 1e2].
    """
    log_data = torch.tensor(R_DATA, dtype=torch.float64).log()
    offsets = torch.cat([-LOG_R[LOG_R > 0.01].flip(0), LOG_R[LOG_R > 0.01]]) * (4.6 / 6.9)
    grid = log_data[:, None] + offsets
    slopes = population_slope(generator, grid, log_data[:, None])
    wrong = torch.where(offsets < 0, slopes >= 0, slopes <= 0) | slopes.isnan()
    meaning = f"least population loss, R_data from {R_DATA[0]:g} to {R_DATA[-1]:g}, is at R = R_data"
    remedy = "the loss does not match ratios: compare its closed form with the definition, and h'' with 0."
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        R, data, slope = float(grid[row, column].exp()), R_DATA[row], float(slopes[row, column])
        where = f"R_data = {data:g}: at R = {R:.3g} the slope is {slope:.3g}, the sign of another minimum"
        return Check("minimum", FAILED, "not at R_data", meaning, where, remedy, {"value": float("inf")})
    low, high = log_data - 1, log_data + 1
    for _ in range(60):
        middle = (low + high) / 2
        rising = population_slope(generator, middle[:, None], log_data[:, None])[:, 0] > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    distance = (low - log_data).abs()
    where = f"R_data = {R_DATA[int(distance.argmax())]:g}"
    return verdict("minimum", float(distance.max()), 1e-6, "nats from R_data", meaning, where, remedy)


def population_slope(generator: Generator, log_R: Tensor, log_data: Tensor) -> Tensor:
    """Return d/d log R of p L(R) + (1-p) L(1/R), p = 1 / (1 + R_data), in the shape of log R."""
    log_R = log_R.clone().requires_grad_()
    p = torch.sigmoid(-log_data)
    total = p * generator.loss(log_R) + (1 - p) * generator.loss(-log_R)
    return torch.autograd.grad(total.sum(), log_R)[0]
