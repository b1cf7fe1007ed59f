"""Compute variances.json.gz, which check.py reads, and the ranks again: python variances.py [FOLDER]. plo takes no part.

Few seeds say little about a row's variance, so the rows share theirs, shrunk (docs/decisions.md, "Seed variances are pooled"). The file
has by metric, number of seeds and row: [variance of its seed means, degrees of freedom, variance of a seed's effect on all rows].
"""

import csv
import gzip
import json
import sys
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np


def read_board(path):
    """Return the leaderboard that `plo leaderboard` wrote as JSON, from its compressed file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def read_values(path):
    """{metric: {row: {seed: values of the prompts}}} of the file that `plo leaderboard --values` writes."""
    found = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            row, seed = line.pop("row"), line.pop("seed")
            del line["prompt"]
            for metric, value in line.items():
                if value:  # else it was not measured
                    found.setdefault(metric, {}).setdefault(row, {}).setdefault(seed, []).append(float(value))
    return found


def polygamma(n, x):
    """Digamma (n 0) or trigamma (n 1): the recurrence up to x + 20, then the asymptotic series."""
    y, near = 1 / (x + 20), sum((x + k) ** -(n + 1.0) for k in range(20))
    if n:
        return y + y**2 / 2 + y**3 / 6 - y**5 / 30 + y**7 / 42 + near
    return -np.log(y) - y / 2 - y**2 / 12 + y**4 / 120 - y**6 / 252 - near


def tails(a, b):
    """Angles from 0 to pi/2, and the share of the integral of sin^(2a-1) cos^(2b-1) beyond each (an incomplete beta)."""
    edges, step = np.linspace(0, np.pi / 2, 50001, retstep=True)
    x = edges[:-1, None] + step * (1 + np.array([-1, 1]) / np.sqrt(3)) / 2  # two Gauss nodes a step
    beyond = np.append((np.sin(x) ** (2 * a - 1) * np.cos(x) ** (2 * b - 1)).sum(1)[::-1].cumsum()[::-1], 0)
    return edges, beyond / beyond[0]


@lru_cache
def student(free):
    """Values of |t|, and the logarithm of the two-sided p of each."""
    angles, share = tails(0.5, free / 2)
    return np.sqrt(free) * np.tan(angles[share > 1e-14]), np.log(share[share > 1e-14])


def moderate(means, values=None, noise=None):
    """v~ of each row of [rows, seeds] means (NaN: no seed), its degrees of freedom, and those of the residual."""
    at = np.isfinite(means)
    rows, seeds = (np.eye(size)[index] for size, index in zip(at.shape, at.nonzero(), strict=True))
    fit = np.hstack([rows, seeds])
    rest = np.eye(len(fit)) - fit @ np.linalg.pinv(fit)  # takes row and seed effects out
    if values is not None:  # noise: the part of the variance that single prompts make
        noise = (values.transpose(1, 0, 2)[:, at] @ rest).var(0, ddof=1).sum() / values.shape[1] / np.trace(rest)
    kept, total = at.any(1), round(np.trace(rest))
    n, free = kept.sum(), np.where(kept, np.diag(rest) @ rows, 0)
    v, f = (means[at] @ rest) ** 2 @ rows / np.where(kept, free, np.nan), free * n / (n - 1)
    rho, h = 1 - min(noise / np.nanmean(v), 1), f[kept] / 2
    logs = np.log(v[kept]) - polygamma(0, h) + np.log(h)
    excess, d0, square = logs.var(ddof=1) - polygamma(1, h).mean(), np.inf, np.nanmean(v)
    if excess > 1e-9:
        low, high = 1e-3, 1e6  # of d0 / 2, whose trigamma is the excess
        for _ in range(200):
            d0 = low + high
            low, high = (d0 / 2, high) if polygamma(1, d0 / 2) > excess else (low, d0 / 2)
        shared = np.exp(logs.mean() + polygamma(0, d0 / 2) - np.log(d0 / 2))
        square = shared + rho * max(np.nanmean(v) * max(1 - 2 / d0, 0.5) - shared, 0)
    d0 = min(d0, 10 / rho**2) if rho else d0
    weight = f / (d0 + f) if np.isfinite(d0) else 0 * f
    found = [square + weight * (v - square), d0 + f, total * (1 - rho / (n - 1))]
    top = np.nanargmax(v)
    others = (np.nansum(v * f) - v[top] * f[top]) / (f.sum() - f[top])
    angle = np.arctan(np.sqrt(f[top] * v[top] / others / (total - f[top])))
    if n > 5 and np.interp(angle, *tails(f[top] / 2, (total - f[top]) / 2)) < 0.005 / n:  # too noisy to share
        found = moderate(np.where(np.arange(len(means))[:, None] == top, np.nan, means), noise=noise)
        found[0][top], found[1][top] = v[top] * (n - 1) / (n - 2), f[top]
    return found


def arrays(tables):
    """[rows, seeds, prompts] of {row: {seed: values of prompts}}, NaN for a seed that a row lacks, and which seeds it has."""
    seeds = list(dict.fromkeys(seed for one in tables.values() for seed in one))
    prompts = len(next(iter(next(iter(tables.values())).values())))
    y = np.array([[one.get(seed, [np.nan] * prompts) for seed in seeds] for one in tables.values()])
    return y, np.isfinite(y[:, :, 0])


def seed_variances(tables):
    """{row: [variance of its seed means, its degrees of freedom, variance of the effect of a seed on all rows]}."""
    y, present = arrays(tables)
    means, count = y.mean(2), present.sum(1)
    v, degrees, residual = moderate(means, y.transpose(0, 2, 1))
    common = max(((np.nanvar(means, 1) * count - (count - 1) * v) / v).sum() / ((count - 1) / v).sum(), 0)
    return {name: [v[i], min(degrees[i], residual), common] for i, name in enumerate(tables)}


def compare(tables, pairs):
    """{pair: (difference, SE, low, high, p)} of {row: {seed: values of prompts}}."""
    names, found, noise = list(tables), {}, seed_variances(tables)
    (y, present), common = arrays(tables), noise[names[0]][2]
    means, prompts, v = y.mean(2), y.shape[2], np.array([noise[name][0] for name in names])
    for a, b in pairs:
        i, j = names.index(a), names.index(b)
        row, seed = np.array([(k, s) for k in (i, j) for s in np.flatnonzero(present[k])]).T
        inverse = np.linalg.inv(common * (seed[:, None] == seed) + np.diag(v[row]))  # rows share the effect of a seed
        design = np.stack([row == i, row == j], 1).astype(float)
        gap = np.array([1, -1]) @ np.linalg.inv(design.T @ inverse @ design)  # generalised least squares
        mean, of_seeds = gap @ design.T @ inverse @ means[row, seed], gap @ [1, -1]
        gaps = (y[i] - y[j])[present[i] & present[j]]
        rest = gaps - gaps.mean(0) - gaps.mean(1)[:, None] + gaps.mean()
        squares = len(gaps) * gaps.mean(0).var(ddof=1) - (rest**2).sum() / (len(gaps) - 1) / (prompts - 1)
        se = np.sqrt(of_seeds + max(squares, 0) / len(gaps) / prompts)
        t, logs = student(prompts - 1)
        few, others = student(min(noise[a][1], noise[b][1]))
        few = np.interp(-logs, -others, few)
        curve = np.sqrt(t**2 + (few**2 - t**2) * (of_seeds / se**2) ** 1.5), logs  # critical values by log level
        half = se * np.interp(-np.log(0.05), -logs, curve[0])
        p = max(np.exp(np.interp(abs(mean) / se, *curve)), 1e-12)
        found[a, b] = mean, se, mean - half, mean + half, p
    return found


def holm(p):
    """Holm's adjusted p of {key: p}."""
    order = sorted(p, key=p.get)
    stepped = np.maximum.accumulate([min(1, p[key] * (len(p) - i)) for i, key in enumerate(order)])
    return dict(zip(order, stepped, strict=True))


def main(folder):
    """Write the variances of each metric at the last look, and of the primary one at every look; check the ranks."""
    board, values = read_board(folder / "leaderboard.json.gz"), read_values(folder / "values.csv.gz")
    rows, base, design = {row["name"]: row for row in board["rows"]}, board["baseline"], board["design"]
    family = [base, *(name for name, row in rows.items() if row["verdict"])]

    def tables(metric, names, look):
        return {name: dict([*values[metric][name].items()][: None if name == base else look]) for name in names}

    found = {}
    for metric in values:
        looks = [look for look in design["looks"] if look == design["look"] or metric == board["primary"]]
        found[metric] = {look: seed_variances(tables(metric, family, look)) for look in looks if look <= design["look"]}
    text = json.dumps(found, indent=0, default=float)
    (folder / "variances.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))

    ranked = [name for name, row in rows.items() if row["rank"]]
    tested = compare(tables(board["primary"], ranked, design["look"]), [*combinations(ranked, 2)])
    apart = [pair for pair, p in holm({pair: one[4] for pair, one in tested.items()}).items() if p < design["alpha"]]
    better = [a if tested[a, b][0] > 0 else b for a, b in apart]
    for name in ranked:
        wins, losses = better.count(name), sum(name in pair for pair in apart) - better.count(name)
        theirs = rows[name]["rank"]
        assert (1 + losses, len(ranked) - wins) == (theirs["low"], theirs["high"]), f"the ranks of {name} differ"
    print(f"Seed variances of {len(family)} rows written; the ranks of {len(ranked)} rows agree.")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
