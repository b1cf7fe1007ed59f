"""Error rates and power of the tests that verdicts and ranks are made of, on simulated tables with a known truth.

    python benchmarks/verdicts.py                             # all settings, about 15 minutes of one core
    python benchmarks/verdicts.py power looks --tables 500    # two sections, rougher

A table has L losses, 200 prompts and S seeds: y = loss x prompt (sd .2) + seed (sd .02) + loss x seed (sd .02) + residual
(sd .4). Where seed variances are "spread", each loss has its own sd over seeds, .02 e^N(0, .5) scaled to the same mean square.
Where "seeds dominate", all sds over seeds are .2 and there are 50 prompts, which add nearly nothing. No loss is the better one, except where
power is measured: there three of seven are .10 better than the baseline.
"""

import argparse
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from plo.statistics import critical, look_levels, p_value, two_way
from plo.statistics.contrasts import common_variance, contrast
from plo.statistics.moderated import moderate, sampling_noise
from plo.statistics.verdicts import EQUIVALENCE

PROMPTS, SEED_SD = 200, 0.02
LOOKS = look_levels([3, 5, 8])


def simulate(rng, tables, losses, seeds, *, seed_sd=SEED_SD, spread=0.0, common=None, prompts=PROMPTS, shift=None):
    """Return [tables, losses, prompts, seeds]; `shift` [losses] is added to the true means."""
    own = seed_sd * np.exp(spread * rng.standard_normal((tables, losses, 1, 1)) - spread**2)  # E own^2 = seed_sd^2
    y = 0.4 * rng.standard_normal((tables, losses, prompts, seeds), dtype=np.float32)
    y += 0.2 * rng.standard_normal((tables, losses, prompts, 1), dtype=np.float32)
    y = y + own * rng.standard_normal((tables, losses, 1, seeds))
    y += (seed_sd if common is None else common) * rng.standard_normal((tables, 1, 1, seeds))
    return y if shift is None else y + np.asarray(shift)[:, None, None]


def chunks(rng, tables, losses, seeds, **settings) -> Iterator[np.ndarray]:
    """Yield simulated tables in parts that fit into memory."""
    size = max(1, int(4e6 / (losses * seeds * settings.get("prompts", PROMPTS))))
    for start in range(0, tables, size):
        yield simulate(rng, min(size, tables - start), losses, seeds, **settings)


def differences(y, pairs):
    """Return mean, standard error, seeds' share and degrees of freedom [tables, pairs] of the differences a - b of `pairs`.

    It is `plo.statistics.compare_pairs` for many complete tables at once; tests/statistics/test_simulations.py compares them.
    """
    tables, losses, prompts, seeds = y.shape
    a, b = np.array(pairs).T
    means, by_prompt = y.mean(2), y.mean(3)
    found = moderate(means, sampling_noise(y))
    of_seeds = (found.variances[:, a] + found.variances[:, b]) / seeds
    centred = by_prompt - by_prompt.mean(-1, keepdims=True)
    rest = (y - by_prompt[..., None] - means[:, :, None] + means.mean(-1)[..., None, None]).reshape(tables, losses, -1)

    def squares(values):  # of all differences
        cross = values @ values.transpose(0, 2, 1)
        own = np.diagonal(cross, axis1=1, axis2=2)
        return own[:, a] + own[:, b] - 2 * cross[:, a, b]

    ms_p = seeds * squares(centred) / (prompts - 1)
    ms_ps = squares(rest) / ((prompts - 1) * (seeds - 1))
    variance = of_seeds + np.maximum(ms_p - ms_ps, 0) / (prompts * seeds)
    mean = means.mean(-1)
    free = np.minimum(np.minimum(found.degrees[:, a], found.degrees[:, b]), found.residual[:, None])
    return mean[:, a] - mean[:, b], np.sqrt(variance), of_seeds / variance, free


def to_baseline(losses):
    return [(loss, 0) for loss in range(1, losses)]


def rejected(mean, se, share, free, prompts, level):
    """Return where a difference is significant at this level without correction."""
    return np.abs(mean) > critical(level, share, prompts, free + 1) * se


def holm(p):
    """Return adjusted p of families [..., tests]."""
    order = np.argsort(p, -1)
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1, np.maximum.accumulate(steps, -1)), -1)
    return adjusted


def error_rates(rng, tables, losses, seeds, **settings):
    """Return raw size and family-wise error of the differences from a baseline, all 0 in truth."""
    pairs, raw, family = to_baseline(losses), [], []
    for y in chunks(rng, tables, losses, seeds, **settings):
        found = *differences(y, pairs), y.shape[2]
        raw.append(rejected(*found, level=0.05))
        family.append(rejected(*found, level=0.05 / len(pairs)).any(-1))  # Holm's first step
    return float(np.concatenate(raw).mean()), float(np.concatenate(family).mean())


def separation(rng, tables, losses, seeds, **settings):
    """Return the share of tables in which the ranks of identical losses separate two of them."""
    pairs = list(combinations(range(losses), 2))
    wrong = [
        rejected(*differences(y, pairs), y.shape[2], 0.05 / len(pairs)).any(-1)
        for y in chunks(rng, tables, losses, seeds, **settings)
    ]
    return float(np.concatenate(wrong).mean())


def power(rng, tables, seeds, **settings):
    """Return power for three of seven variants .10 better: (raw, Holm) of the pooled test, and of each difference's own."""
    found, shift = [], [0, 0.1, 0.1, 0.1, 0, 0, 0, 0]
    for y in chunks(rng, tables, 8, seeds, shift=shift, **settings):
        mean, se, share, free = differences(y, to_baseline(8))
        pooled = p_value(mean / se, share, y.shape[2], free + 1)
        mean, se, share = two_way(y[:, 1:] - y[:, :1])
        own = p_value(mean / se, share, PROMPTS, seeds)
        found.append([(q < 0.05)[:, :3].mean() for p in (pooled, own) for q in (p, holm(p))])
    return np.mean(found, 0)


def equivalence(rng, tables, losses, seeds, margin=0.1, levels=None, **settings):
    """Return how often a variant whose true difference is the margin is called equivalent, at one look or at any of several."""
    wrong = []
    for y in chunks(rng, tables, losses, seeds, shift=[0, *[margin] * (losses - 1)], **settings):
        any_look = np.zeros((len(y), losses - 1), dtype=bool)
        for look, level in (levels or {seeds: 0.05}).items():
            mean, se, share, free = differences(y[..., :look], to_baseline(losses))
            any_look |= margin - np.abs(mean) > critical(2 * EQUIVALENCE * level, share, y.shape[2], free + 1) * se
        wrong.append(any_look)
    return float(np.concatenate(wrong).mean())


def looks(rng, tables, losses, effect=0.0, margin=None, **settings):
    """Return, of looks at 3, 5 and 8 seeds, the family-wise error, the power (of three variants) and the mean number of seeds.

    A table is left as soon as all its rows are settled; rows that differ stay so.
    """
    shift = [0, *[effect] * 3, *[0] * (losses - 4)]
    wrong, right, seeds = [], [], []
    for y in chunks(rng, tables, losses, 8, shift=shift, **settings):
        decided = np.zeros((len(y), losses - 1), dtype=bool)
        significant, used = decided.copy(), np.full(len(y), 8)
        for look, level in LOOKS.items():
            mean, se, share, free = differences(y[..., :look], to_baseline(losses))
            going = (used == 8)[:, None] & ~decided
            now = going & (holm(p_value(mean / se, share, y.shape[2], free + 1)) < level)
            significant |= now
            decided |= now
            if margin is not None:
                decided |= going & (
                    margin - np.abs(mean) > critical(2 * EQUIVALENCE * level, share, y.shape[2], free + 1) * se
                )
            used = np.where((used == 8) & decided.all(-1), look, used)
        wrong.append(significant[:, 3 if effect else 0 :].any(-1))
        right.append(significant[:, :3])
        seeds.append(used)
    return tuple(float(np.concatenate(x).mean()) for x in (wrong, right, seeds))


def more_baseline_seeds(rng, tables, losses, seeds, baseline, effect=0.0, **settings):
    """Return raw size (or power), family-wise error and mean standard error where the baseline has more seeds than the variants."""
    raw, family, errors = [], [], []
    shift = [0, *[effect] * (losses - 1)]
    for y in chunks(rng, tables, losses, baseline, shift=shift, **settings):
        y[:, 1:, :, seeds:] = np.nan
        means, prompts = y.mean(2), y.shape[2]
        found = moderate(means, sampling_noise(y))
        common = common_variance(means, found.variances)[:, None]
        paired = differences(y[..., :seeds], to_baseline(losses))
        of_prompts = paired[1] ** 2 * (1 - paired[2])
        weights, of_seeds = contrast(
            (seeds, 0, baseline - seeds), found.variances[:, 1:], found.variances[:, :1], common
        )
        parts = [means[:, 1:, :seeds].mean(-1), means[:, :1, :seeds].mean(-1), 0.0, means[:, :1, seeds:].mean(-1)]
        mean = sum(w * part for w, part in zip(weights, parts, strict=True))
        variance = of_seeds + of_prompts
        free = np.minimum(np.minimum(found.degrees[:, 1:], found.degrees[:, :1]), found.residual[:, None])
        test = mean, np.sqrt(variance), of_seeds / variance, free, prompts
        raw.append(rejected(*test, level=0.05))
        family.append(rejected(*test, level=0.05 / (losses - 1)).any(-1))
        errors.append(test[1])
    return tuple(float(np.concatenate(x).mean()) for x in (raw, family, errors))


SEEDS_DOMINATE = {"seed_sd": 0.2, "prompts": 50}
SETTINGS = {
    "equal": {},
    "spread": {"spread": 0.5},
    "seeds dominate": SEEDS_DOMINATE,
    "seeds dominate, spread": SEEDS_DOMINATE | {"spread": 0.5},
}


def show(*cells) -> None:
    print("|", " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells), "|", flush=True)


def heading(*titles: str) -> None:
    print()
    show(*titles)
    print("|" + "---|" * len(titles), flush=True)


def show_error_rates(n, rng):
    heading("no difference", "losses", "seeds", "raw size", "family-wise error")
    for title, setting in SETTINGS.items():
        for losses in (5, 8, 20):
            for seeds in (2, 3, 5, 8):
                show(title, losses, seeds, *error_rates(rng, n, losses, seeds, **setting))


def show_looks(n, rng):
    heading("looks at 3, 5 and 8 seeds", "losses", "family-wise error", "power", "mean seeds")
    for title, setting in SETTINGS.items():
        for losses in (5, 8, 20):
            show(title, losses, looks(rng, n, losses, **setting)[0], "", "")
    for effect in (0.10, 0.15):
        for margin in (0.1, 0.15):
            wrong, right, used = looks(rng, n // 2, 8, effect, margin=margin)
            show(f"three {effect:.2f} better, margin {margin:.2f}", 8, wrong, right, f"{used:.1f}")


def show_power(n, rng):
    heading("three of seven .10 better", "seeds", "own variance, raw / Holm", "pooled, raw / Holm")
    for title, setting in list(SETTINGS.items())[:2]:
        for seeds in (2, 3, 5, 8):
            pooled_raw, pooled, raw, own = power(rng, max(n // 2, 200), seeds, **setting)
            show(title, seeds, f"{raw:.2f} / {own:.2f}", f"{pooled_raw:.2f} / {pooled:.2f}")


def show_ranks(n, rng):
    heading("identical losses", "losses", "seeds", "separated by ranks", "called equivalent at the margin")
    for title, setting in SETTINGS.items():
        margin = 1.0 if "prompts" in setting else 0.1
        for losses, seeds in ((6, 2), (6, 3), (6, 5), (20, 3)):
            apart = separation(rng, n, losses, seeds, **setting)
            show(title, losses, seeds, apart, equivalence(rng, n, losses, seeds, margin, **setting))
        show(title, 8, "looks", "", equivalence(rng, n, 8, 8, margin, LOOKS, **setting))


def show_baseline(n, rng):
    heading("baseline with more seeds", "common sd", "seeds", "baseline's seeds", "raw size", "family-wise error")
    for title, setting in SETTINGS.items():
        for scale in (0.0, 1.0, 5.0):
            common = scale * setting.get("seed_sd", SEED_SD)
            for seeds, baseline in ((2, 5), (3, 8)):
                rates = more_baseline_seeds(rng, n, 8, seeds, baseline, **setting | {"common": common})
                show(title, f"{common:g}", seeds, baseline, *rates[:2])


SECTIONS = {
    "errors": show_error_rates, "looks": show_looks, "power": show_power, "ranks": show_ranks, "baseline": show_baseline,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="sections to print; none: all")
    parser.add_argument("--tables", type=int, default=3000, help="simulated tables per setting")
    arguments = parser.parse_args()
    for section in arguments.sections or SECTIONS:
        SECTIONS[section](arguments.tables, np.random.default_rng(0))


if __name__ == "__main__":
    main()
