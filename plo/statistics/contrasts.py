"""Differences of two rows whose numbers of seeds are unequal, or whose seeds are not all the same."""

import numpy as np

from plo.statistics.intervals import Array


def common_variance(means: Array, variances: Array) -> Array:
    """Return the variance of the seed effects that all rows share, at least 0.

        tau^2 = sum_l [sum_s (m_ls - m_l)^2 - (S_l - 1) v~_l] / v~_l / sum_l (S_l - 1) / v~_l

    Args:
        means: [..., rows, seeds] as for `seed_variances`.
        variances: [..., rows], moderated.
    """
    free = np.isfinite(means).sum(-1) - 1
    squares = np.nansum((means - np.nanmean(means, -1, keepdims=True)) ** 2, -1)
    weights = 1 / np.maximum(variances, 1e-300 + 1e-6 * variances.max(-1, keepdims=True))
    return np.maximum((weights * (squares - free * variances)).sum(-1) / (weights * free).sum(-1), 0.0)


def contrast(
    seeds: tuple[int, int, int], a: float | Array, b: float | Array, common: float | Array
) -> tuple[Array, Array]:
    """Return the best weights of two rows' seed means in their difference, and the variance of that difference.

    Row l has the mean m_ls = row_l + c_s + e_ls in seed s, where Var(c) = tau^2 and Var(e_l) = v~_l. The generalised least
    squares estimate of row_a - row_b uses four means: of a and of b over the C seeds that both have, and of each over the
    seeds that only it has. Without seeds of the last two kinds it is the paired difference with variance (v~_a + v~_b) / C.
    If tau^2 = 0 every seed counts alike. If tau^2 is large, unpaired seeds hardly count.

    Args:
        seeds: numbers of seeds that both rows have, that only a has, and that only b has.
        a, b: v~ of the rows, [...].
        common: tau^2, [...].

    Returns:
        weights [4, ...] of the means a (common), b (common), a (rest), b (rest); the variance [...].

    Source: Aitken's generalised least squares, with the inverse of the 2 x 2 information written out.
    """
    paired, only_a, only_b = seeds
    nothing = (np.asarray(a) + b + common) <= 0
    a, b, common = (np.where(nothing, one, value) for one, value in ((1.0, a), (1.0, b), (0.0, common)))
    a, b = np.maximum(a, 1e-12 * (a + b + common)), np.maximum(b, 1e-12 * (a + b + common))
    determinant = common * (a + b) + a * b
    aa, bb, ab = (
        paired * (common + b) / determinant,
        paired * (common + a) / determinant,
        -paired * common / determinant,
    )
    rest_a, rest_b = only_a / (common + a), only_b / (common + b)
    information = (aa + rest_a) * (bb + rest_b) - ab**2
    to_a, to_b = (bb + rest_b + ab) / information, -(aa + rest_a + ab) / information
    weights = np.stack([to_a * aa + to_b * ab, to_a * ab + to_b * bb, to_a * rest_a, to_b * rest_b])
    return weights, np.where(nothing, 0.0, to_a - to_b)
