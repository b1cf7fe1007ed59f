"""placeholder"""

from typing import NamedTuple

from scipy.stats import qmc


class Trial(NamedTuple):
    utility: float
    se: float
    kl: float


def sobol_points(space, count, *, seed):
    u = qmc.Sobol(2, seed=seed).random(count)
    return [
        {n: float(f"{lo * (hi / lo) ** u[i, d]:.3g}") for d, (n, (lo, hi)) in enumerate(space.items())}
        for i in range(count)
    ]


def promoted(trials, n):
    return sorted(range(len(trials)), key=lambda i: -trials[i].utility)[:n]


def choose(trials, *, max_kl=None):
    ok = [i for i, t in enumerate(trials) if max_kl is None or t.kl <= max_kl] or [
        min(range(len(trials)), key=lambda i: trials[i].kl)
    ]
    best = max(ok, key=lambda i: trials[i].utility)
    near = [i for i in ok if trials[i].utility >= trials[best].utility - trials[best].se]
    return min(near, key=lambda i: trials[i].kl)


def edges(space, point):
    return []
