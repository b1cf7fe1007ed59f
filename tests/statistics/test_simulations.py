"""Error rates and power of `benchmarks/verdicts.py`, whose vectorised tests are those of `compare`."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plo.statistics import compare_pairs

spec = importlib.util.spec_from_file_location("verdicts", Path(__file__).parents[2] / "benchmarks" / "verdicts.py")
verdicts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verdicts)
TABLES = 2500  # a rate of .05 has a standard error of .0044
SIZE = 0.06 + 2 * 0.0044


@pytest.mark.parametrize("setting", verdicts.SETTINGS)
@pytest.mark.parametrize("seeds", [2, 3])
def test_the_simulated_test_is_the_one_of_tables(setting, seeds):
    y = verdicts.simulate(np.random.default_rng(0), 3, 6, seeds, **verdicts.SETTINGS[setting])
    pairs = [(0, 1), (4, 2)]
    mean, se, share, free = verdicts.differences(y, pairs)
    for table in range(3):
        rows = {str(loss): pd.DataFrame(y[table, loss]) for loss in range(6)}
        for place, ((a, b), one) in enumerate(compare_pairs(rows, [(str(a), str(b)) for a, b in pairs]).items()):
            assert (a, b) == tuple(map(str, pairs[place]))
            assert one.mean == pytest.approx(mean[table, place], rel=1e-4)
            assert one.se == pytest.approx(se[table, place], rel=1e-5)
            assert one.share == pytest.approx(share[table, place], rel=1e-5)
            assert one.degrees == pytest.approx(free[table, place], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("setting", verdicts.SETTINGS)
@pytest.mark.parametrize("losses", [5, 8, 20])
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_error_rates(setting, losses, seeds):
    rng = np.random.default_rng([losses, seeds])
    raw, family = verdicts.error_rates(rng, TABLES, losses, seeds, **verdicts.SETTINGS[setting])
    assert raw <= SIZE and family <= SIZE


@pytest.mark.slow
@pytest.mark.parametrize("setting", verdicts.SETTINGS)
@pytest.mark.parametrize("losses", [5, 8, 20])
def test_error_rates_over_looks(setting, losses):
    wrong, *_ = verdicts.looks(np.random.default_rng(losses), TABLES, losses, **verdicts.SETTINGS[setting])
    assert wrong <= SIZE


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "raw", "holm"), [(2, 0.58, 0.24), (3, 0.81, 0.49), (5, 0.92, 0.75)])
def test_power(seeds, raw, holm):
    """Within .03 of the power that pooling was designed for, and far above that of a difference's own variance."""
    found_raw, found, own_raw, own = verdicts.power(np.random.default_rng(seeds), 1500, seeds)
    assert found_raw >= raw - 0.04 and found >= holm - 0.04
    assert found_raw > own_raw + 0.05 and found > own + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("setting", verdicts.SETTINGS)
@pytest.mark.parametrize(("losses", "seeds"), [(6, 3), (6, 5), (20, 3)])
def test_ranks_and_equivalence(setting, losses, seeds):
    rng, settings = np.random.default_rng([losses, seeds]), verdicts.SETTINGS[setting]
    assert verdicts.separation(rng, TABLES, losses, seeds, **settings) <= SIZE
    margin = 1.0 if "prompts" in settings else 0.1
    assert verdicts.equivalence(rng, TABLES, losses, seeds, margin, **settings) <= 0.05
    assert verdicts.equivalence(rng, TABLES, losses, 8, margin, verdicts.LOOKS, **settings) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("setting", verdicts.SETTINGS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_a_baseline_with_more_seeds(setting, scale):
    settings = dict(verdicts.SETTINGS[setting])
    settings["common"] = scale * settings.get("seed_sd", verdicts.SEED_SD)
    raw, family, _ = verdicts.more_baseline_seeds(np.random.default_rng(0), TABLES, 8, 3, 8, **settings)
    assert raw <= SIZE and family <= SIZE
