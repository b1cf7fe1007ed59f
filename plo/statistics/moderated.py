"""Seed variances of a table's rows, each shrunk towards the value that all rows share (moderated variances)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from plo.statistics.contrasts import common_variance
from plo.statistics.intervals import Array, Table, complete

MOST = 10.0  # degrees of freedom that a shared variance is worth where nothing but seeds makes it
NOISY = 0.005  # level at which a row's variance is too large to be shared
LEAST_ROWS = 5  # with fewer, the rows' own variances say too little about what they share


@dataclass(frozen=True)
class Pool:
    """Seed variances of the rows of one table, in squared units of the metric.

    Attributes:
        variances: moderated variance v~ of each row's seed means, beyond the seed effects that all rows share.
        degrees: degrees of freedom of each moderated variance; d0 + S - 1 with S common seeds, S - 1 for a row that is so
            noisy that it has a variance of its own.
        s0: standard deviation over seeds that the rows share, sqrt(s0^2).
        d0: number of degrees of freedom that the shared value is worth to each row; inf: all rows have the same variance.
        common: variance tau^2 of the seed effects that all rows share. It cancels in differences over common seeds.
        rho: share of the rows' variances that is no sampling noise of their prompts and so may differ between rows.
        residual: upper limit of the degrees of freedom of a difference; (L - 1 - rho)(S - 1) with S common seeds.
    """

    variances: dict[str, float]
    degrees: dict[str, float]
    s0: float
    d0: float
    common: float
    rho: float
    residual: float


def pool(tables: Mapping[str, Table]) -> Pool | None:
    """Return the moderated seed variances of a table's rows, or None where the rows are fewer than 5 or share no seeds.

    Args:
        tables: for each row its values [prompts, seeds], as for `estimate`. Rows may lack seeds that others have.
    """
    items = {name: frame for name, table in tables.items() if len(frame := complete(table))}
    if len(items) < LEAST_ROWS:
        return None
    seeds = list(dict.fromkeys(seed for frame in items.values() for seed in frame))
    means = np.array([frame.mean().reindex(seeds).to_numpy(dtype=float) for frame in items.values()])
    if (seed_variances(means)[1] > 0).sum() < LEAST_ROWS:
        return None
    prompts = reduce(pd.Index.intersection, (frame.index for frame in items.values()))
    y = np.array([frame.reindex(index=prompts, columns=seeds).to_numpy(dtype=float) for frame in items.values()])
    found = moderate(means, sampling_noise(y))
    return Pool(
        dict(zip(items, found.variances.tolist(), strict=True)),
        dict(zip(items, found.degrees.tolist(), strict=True)),
        math.sqrt(found.square),
        float(found.d0),
        float(common_variance(means, found.variances)),
        float(found.rho),
        float(found.residual),
    )


class Moderated(NamedTuple):
    """Result of `moderate`: v~ and its degrees of freedom [(tables,) rows], and [(tables)] d0, s0^2, rho and the residual ones."""

    variances: Array
    degrees: Array
    d0: Array
    square: Array
    rho: Array
    residual: Array


def moderate(means: Array, noise: float | Array = 0.0) -> Moderated:
    """Return the moderated seed variances of tables of seed means: `seed_variances`, `variance_prior` and `moderated`.

    A row whose variance exceeds the mean of the others' by the F test at .005 / L keeps its own variance and degrees of
    freedom, and the others share theirs without it, so that one noisy row does not decide about quiet ones. This is repeated
    while 5 other rows remain.

    Args:
        means: [rows, seeds] or [tables, rows, seeds], as for `seed_variances`.
        noise: [] or [tables], the result of `sampling_noise`; 0: only seed means are known.
    """
    if means.ndim == 2:
        return Moderated(*(part[0] for part in moderate(means[None], noise)))
    raw, free, residual = seed_variances(means)
    rho = 1 - np.minimum(noise / np.maximum(np.nanmean(raw, -1), 1e-300), 1)
    d0, square = variance_prior(raw, free, rho)
    rows = int((free > 0).sum())
    found = Moderated(
        moderated(raw, free, d0, square), d0[:, None] + free, d0, square, rho, residual * (1 - rho / (rows - 1))
    )
    if rows <= LEAST_ROWS:
        return found
    largest = np.where(free > 0, raw, -1.0).argmax(-1)
    v, f = raw.max(-1, where=free > 0, initial=0.0), free[largest]
    others = np.maximum((np.nansum(raw * free, -1) - v * f) / (free.sum() - f), 1e-300)
    for table in np.flatnonzero(special.fdtrc(f, residual - f, v / others) < NOISY / rows):
        rest, row = means[table].copy(), largest[table]
        rest[row] = np.nan
        for whole, part in zip(found, moderate(rest, np.broadcast_to(noise, len(rho))[table]), strict=True):
            whole[table] = part
        found.variances[table, row] = v[table] * (rows - 1) / (rows - 2)  # double centring took part of it
        found.degrees[table, row] = f[table]
    return found


def seed_variances(means: Array) -> tuple[Array, Array, int]:
    """Return each row's variance over seeds, after the seed effects that all rows share have been removed.

    The additive model m_ls = row_l + seed_s is fitted by least squares. With its residuals r and leverages h,

        v_l = sum_s r_ls^2 / sum_s (1 - h_ls),    f_l = sum_s (1 - h_ls) L / (L - 1).

    If all L rows have the same S seeds, v_l is the variance (ddof 1) of the doubly centred means times L / (L - 1), and
    f_l = S - 1.

    Args:
        means: [..., rows, seeds], seed means of each row; NaN for a seed that a row lacks, the same in all leading places.

    Returns:
        v [..., rows]; f [rows]; the residual degrees of freedom of the fit, (L - 1)(S - 1) if nothing is missing. A row
        that shares no seed with others has f 0 and v NaN.
    """
    present = _present(means)
    annihilator, rows = _annihilator(present)
    residuals = means[..., present] @ annihilator
    of_row: Array = rows[:, None] == np.arange(means.shape[-2], dtype=float)
    free: Array = np.diag(annihilator) @ of_row
    free = np.where(free > 1e-9, free, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variances: Array = np.where(free > 0, (residuals**2 @ of_row) / free, np.nan)
    scale = 1e-24 * np.nanmax(means**2, (-2, -1))[..., None]
    variances = np.where(variances < scale, 0.0, variances)  # rounding
    lines = int((free > 0).sum())
    return variances, free * lines / max(lines - 1, 1), round(float(np.trace(annihilator)))


def sampling_noise(values: Array) -> Array:
    """Return the part of the rows' mean seed variance that comes from the noise of single prompts; 0 with one prompt.

    With r the residuals of `seed_variances` at each of P prompts, it is sum_ls Var_p(r_lps) / (P sum_ls (1 - h_ls)).

    Args:
        values: [..., rows, prompts, seeds]; NaN for a seed that a row lacks.
    """
    prompts = values.shape[-2]
    if prompts < 2:
        return np.zeros(values.shape[:-3])
    by_prompt = np.moveaxis(values, -2, -3)
    present = _present(by_prompt)
    annihilator, _ = _annihilator(present)
    residuals = by_prompt[..., present] @ annihilator
    return residuals.var(-2, ddof=1).sum(-1) / prompts / np.trace(annihilator)


def variance_prior(variances: Array, degrees: Array, rho: float | Array = 0.0) -> tuple[Array, Array]:
    """Return d0 and s0^2 of the scaled inverse chi-square distribution from which the rows' variances come.

    If sigma_l^2 ~ d0 s0^2 / chi^2_{d0} and v_l ~ sigma_l^2 chi^2_f / f, then log v_l - psi(f/2) + log(f/2) has

        mean  log s0^2 - psi(d0/2) + log(d0/2),    variance  psi'(f/2) + psi'(d0/2),

    psi and psi' the digamma and trigamma functions. Mean and variance over the rows give s0^2 and d0. If the variance does
    not exceed psi'(f/2), the rows do not seem to differ: d0 = inf, s0^2 the mean of v.

    Few rows with few seeds cannot show how much their variances differ, and the test would then reject too often. So the
    part rho of v that is no sampling noise bounds the result (docs/decisions.md): d0 is at most 10 / rho^2, and s0^2 is
    (1 - rho) times the above plus rho times the larger of it and the estimate by moments, mean(v) max(1 - 2/d0, 1/2).

    Args:
        variances: [..., rows]. NaN is left out; less than 1e-5 of the median (a row without any variance) counts as that.
        degrees: [rows], f.
        rho: [...], between 0 (the formulas above) and 1.

    Source: Smyth, Linear models and empirical Bayes methods, Stat. Appl. Genet. Mol. Biol. 3 (2004), section 6.2; limma's
    `fitFDist`.
    """
    kept = degrees > 0
    v, half = variances[..., kept], degrees[kept] / 2
    v = np.maximum(v, 1e-5 * np.median(v, -1, keepdims=True))
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(v > 0, v, 1.0)) - special.digamma(half) + np.log(half)
    excess = logs.var(-1, ddof=1) - special.polygamma(1, half).mean()
    differ = (excess > 1e-9) & (v > 0).all(-1)
    d0: Array = np.where(differ, 2 * trigamma_inverse(np.where(differ, excess, 1.0)), 2.0)
    shared = np.exp(logs.mean(-1) + special.digamma(d0 / 2) - np.log(d0 / 2))
    moments = v.mean(-1) * np.maximum(1 - 2 / d0, 0.5)
    shared: Array = np.where(differ, shared + np.multiply(rho, np.maximum(moments - shared, 0)), v.mean(-1))
    with np.errstate(divide="ignore"):
        return np.minimum(np.where(differ, d0, np.inf), MOST / np.square(rho)), shared


def trigamma_inverse(values: Array) -> Array:
    """Return y with psi'(y) = `values` (positive), by Newton's method on 1 / psi', which is nearly linear."""
    y = 0.5 + 1 / values
    for _ in range(50):
        trigamma = special.polygamma(1, y)
        step = trigamma * (1 - trigamma / values) / special.polygamma(2, y)
        y = y + step
        if (np.abs(step) < 1e-12 * y).all():
            break
    return y


def moderated(variances: Array, degrees: Array, d0: float | Array, square: float | Array) -> Array:
    """Return moderated variances v~_l = (d0 s0^2 + f_l v_l) / (d0 + f_l); s0^2 for a row without variance of its own.

    Args:
        variances, degrees: the results of `seed_variances`, [..., rows] and [rows].
        d0, square: the results of `variance_prior`, [...].
    """
    d0, square = np.asarray(d0)[..., None], np.asarray(square)[..., None]
    weight = np.where(np.isinf(d0), 0.0, degrees / (np.where(np.isinf(d0), 1.0, d0) + degrees))
    return square + weight * (np.where(degrees > 0, variances, square) - square)


def _present(values: Array) -> npt.NDArray[np.bool_]:
    """Return which cells [rows, seeds] of [..., rows, seeds] have values."""
    first: Array = values.reshape(-1, *values.shape[-2:])[0]
    return np.isfinite(first)


def _annihilator(present: npt.NDArray[np.bool_]) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return I - H of the additive model on the cells that are present, and each cell's row."""
    rows, seeds = np.nonzero(present)
    design = np.concatenate([np.eye(present.shape[0])[rows], np.eye(present.shape[1])[seeds]], 1)
    return np.eye(len(rows)) - design @ np.linalg.pinv(design), rows
