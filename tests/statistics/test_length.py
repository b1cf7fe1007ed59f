"""Length-adjusted win rates: against the equation written out, simulated truth, and the published table."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from plo.statistics.intervals import StatisticsError
from plo.statistics.length import WEAK_SD, length_adjusted, rate_range


def simulated(models: int, prompts: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Verdicts 0 or 1 under the model's own equation; the true adjusted rates and slopes."""
    rng = np.random.default_rng(seed)
    w, g = rng.normal(-0.5, 0.7, models), rng.normal(0, 1.2, prompts)
    slopes = 1.5 + rng.normal(0, 0.2, models)
    shift = np.linspace(-1.5, 1.5, models)  # from far shorter than the opponent to far longer
    base = rng.integers(400, 3000, prompts)
    difference = np.rint(500 * (shift[:, None] + rng.normal(size=(models, prompts))))
    x = np.tanh(difference / difference.std(axis=1, ddof=1, keepdims=True))
    win = rng.random((models, prompts)) < expit(w[:, None] + g + slopes[:, None] * x)
    index = pd.MultiIndex.from_product([range(models), range(prompts)], names=["model", "prompt_id"])
    frame = pd.DataFrame({"win": win.ravel().astype(float), "length": (base + difference).ravel()}, index=index)
    frame["base_length"] = np.tile(base, models)
    return frame.reset_index(), expit(w[:, None] + g).mean(1), slopes


def test_it_is_the_maximum_of_the_equation():
    frame, *_ = simulated(3, 12)
    frame.loc[3, "win"] = 0.3
    frame = frame.drop(index=5)
    m, i, y = (frame[column].to_numpy() for column in ("model", "prompt_id", "win"))
    difference = frame["length"] - frame["base_length"]
    x = np.tanh(difference / difference.groupby(m).transform("std")).to_numpy()

    def objective(v):
        w, g, phi, d = np.split(v, [3, 15, 16])
        p = expit(w[m] + g[i] + (phi + d[m]) * x)
        priors = (w @ w + phi @ phi) / WEAK_SD**2 + g @ g / 0.8**2 + d @ d / 0.5**2
        return -np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)) + priors / 2

    w, g, phi, d = np.split(minimize(objective, np.zeros(19), options={"gtol": 1e-7}).x, [3, 15, 16])
    table = length_adjusted(frame, prompt_sd=0.8, slope_sd=0.5).rates
    assert table["rate"].tolist() == pytest.approx(expit(w[:, None] + g).mean(1), abs=1e-5)
    assert table["slope"].tolist() == pytest.approx(phi + d, abs=1e-4)
    assert table["raw"].tolist() == pytest.approx(frame.groupby("model")["win"].mean().tolist())


def test_it_recovers_what_was_simulated():
    fits = [(length_adjusted(frame), *true) for frame, *true in (simulated(8, 400, s) for s in range(20))]
    runs = [(fit.rates, truth, slopes) for fit, truth, slopes in fits]
    off = np.array([table["rate"] - truth for table, truth, _ in runs])
    assert np.abs(off.mean(0)).max() < 0.015  # 3 standard errors of 20 runs
    assert np.mean([np.abs(table["raw"] - truth).mean() for table, truth, _ in runs]) > 0.1  # what there was to adjust
    covered = np.abs(off) < 1.96 * np.array([table["se"] for table, *_ in runs])
    assert 0.9 < covered.mean() < 0.99
    assert np.mean([np.abs(table["slope"] - slopes).mean() for table, _, slopes in runs]) < 0.2  # their own sd
    assert np.mean([fit.prompt_sd for fit, *_ in fits]) == pytest.approx(1.2, abs=0.1)


def test_the_order_of_the_rows_is_of_no_account():
    frame, *_ = simulated(3, 50)
    shuffled, found = length_adjusted(frame.sample(frac=1, random_state=1)), length_adjusted(frame)
    pd.testing.assert_frame_equal(shuffled.rates, found.rates, rtol=1e-6)
    pd.testing.assert_frame_equal(shuffled.items, found.items, rtol=1e-5)


def test_se_is_that_of_a_bootstrap_over_prompts():
    frame, *_ = simulated(3, 150)
    rng, own = np.random.default_rng(0), dict(list(frame.groupby("prompt_id")))
    drawn = []
    for _ in range(60):
        picked = rng.integers(0, 150, 150)
        again = pd.concat([own[p].assign(prompt_id=place) for place, p in enumerate(picked)])
        drawn.append(length_adjusted(again, prompt_sd=1.2).rates["rate"])
    found = length_adjusted(frame, prompt_sd=1.2)
    assert (pd.DataFrame(drawn).std() / found.rates["se"]).tolist() == pytest.approx([1, 1, 1], abs=0.25)
    # and the pseudo-values carry both to whatever reads values of single prompts, differences included
    assert found.items.shape == (150, 3)
    assert found.items.mean().tolist() == pytest.approx(found.rates["rate"].tolist())
    assert found.items.sem().tolist() == pytest.approx(found.rates["se"].tolist())
    apart = (found.items[0] - found.items[2]).sem()
    assert (pd.DataFrame(drawn)[0] - pd.DataFrame(drawn)[2]).std() / apart == pytest.approx(1, abs=0.25)


def test_where_lengths_are_equal_nothing_is_adjusted():
    frame = pd.DataFrame({"model": "m", "prompt_id": range(40), "win": [1.0] * 10 + [0.0] * 30, "length": 5})
    table = length_adjusted(frame.assign(base_length=5)).rates
    assert table.loc["m", "rate"] == pytest.approx(0.25, abs=2e-3)
    assert table.loc["m", "se"] == pytest.approx(np.sqrt(0.25 * 0.75 / 39), rel=0.02)
    constant = length_adjusted(frame.assign(base_length=2)).rates  # always three longer: no slope of its own
    assert np.isfinite(constant.loc["m", ["rate", "slope", "se"]].astype(float)).all()


def test_unreadable_verdicts_are_left_out_and_a_sweep_stays_finite():
    frame, *_ = simulated(3, 60)
    holes = pd.concat([frame, frame.head(7).assign(prompt_id=900, win=np.nan)])
    pd.testing.assert_frame_equal(length_adjusted(holes).rates, length_adjusted(frame).rates)
    won = length_adjusted(frame.assign(win=frame["win"].where(frame["model"] != 1, 1.0))).rates
    assert 0.95 < won.loc[1, "rate"] < 1 and np.isfinite(won).all(axis=None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.drop(columns="length"), "lacks the columns length"),
        (lambda f: f.assign(win=np.nan), "no readable verdict"),
        (lambda f: f.assign(win=f["win"] + 1), r"3 verdicts have a win that is not in \[0, 1\]"),
        (lambda f: f.assign(length=np.nan), r"a length that is not finite, the first of the model 0, prompt_id 0\."),
    ],
)
def test_what_is_wrong_with_a_frame_is_named(change, named):
    frame, *_ = simulated(2, 5)
    with pytest.raises(StatisticsError, match=named):
        length_adjusted(change(frame))


def test_distance_to_the_official_rates(shared_data):
    """31 published models, no difficulty given: 1.2 points from the official rate on average; alone, about 7."""
    folder = shared_data / "alpaca_eval"
    published = pd.read_csv(folder / "published_leaderboard.csv", index_col=0)["length_controlled_winrate"]
    published = published.drop("gpt4_1106_preview")
    read = pd.read_csv(folder / "preferences.csv.gz")
    read = read[read["model"].isin(published.index)]
    columns = {"instruction_index": "prompt_id", "len_2": "length", "len_1": "base_length"}
    frame = read.rename(columns=columns).assign(win=read["preference"] - 1)

    def distance(table):
        assert len(table) == 31
        return (100 * table["rate"] - published).abs().mean()

    assert distance(length_adjusted(frame).rates) < 1.2
    assert distance(pd.concat(length_adjusted(own, prompt_sd=0.1).rates for _, own in frame.groupby("model"))) > 5


def test_seeds_of_a_variant_share_their_slope():
    """Five seeds of a variant with a slope of its own: shared, it is found; a seed's own slope stays near the common one."""
    rng, errors = np.random.default_rng(0), {True: [], False: []}
    for _ in range(10):
        frames = []
        for variant, (slope, shift) in {"a": (1.0, 0.0), "b": (2.2, 1.0), "c": (1.0, -0.5), "d": (1.0, 0.5)}.items():
            for seed in range(5):
                difference = np.rint(500 * (shift + rng.normal(size=150)))
                win = rng.random(150) < expit(slope * np.tanh(difference / difference.std(ddof=1)))
                frames.append(
                    pd.DataFrame({
                        "model": f"{variant}{seed}", "variant": variant, "prompt_id": range(150), "win": win.astype(float),
                        "length": 2000 + difference, "base_length": 2000,
                    })
                )  # fmt: skip
        frame = pd.concat(frames)
        for shared in (True, False):
            fit = length_adjusted(frame if shared else frame.drop(columns="variant"), prompt_sd=0.5)
            own = fit.rates.loc[[f"b{seed}" for seed in range(5)]]
            errors[shared].append(own["rate"].mean() - 0.5)
            if shared:
                assert own["slope"].nunique() == 1 and fit.rates["slope"].nunique() == 4
    assert abs(np.mean(errors[True])) < 0.7 * abs(np.mean(errors[False]))


def test_range_of_rates():
    frame, *_ = simulated(4, 60)
    fits = [length_adjusted(frame, slope_sd=sd, prompt_sd=0.8).rates["rate"] for sd in (0.1, 0.8)]
    found = rate_range(frame, (0.1, 0.8), prompt_sd=0.8)
    np.testing.assert_allclose(found["low"], np.minimum(*fits))
    np.testing.assert_allclose(found["high"], np.maximum(*fits))
    assert (rate_range(frame)["low"] <= rate_range(frame)["high"]).all()
