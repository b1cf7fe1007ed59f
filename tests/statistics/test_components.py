"""Variance components: by hand, and of simulated data whose components are known."""

import math

import numpy as np
import pandas as pd
import pytest

from plo.statistics import variance_components

SD = {"loss": 0.5, "seed": 0.3, "prompt": 1.0, "loss x prompt": 0.6, "loss x seed": 0.2, "residual": 0.8}


def frame(y, factors=("loss", "seed", "prompt")):
    index = np.indices(y.shape).reshape(y.ndim, -1)
    return pd.DataFrame(dict(zip(factors, index, strict=True)) | {"value": y.ravel()})


def simulated(rng, L=12, S=10, P=60):
    draw = rng.normal
    y = SD["loss"] * draw(size=(L, 1, 1)) + SD["seed"] * draw(size=(1, S, 1)) + SD["prompt"] * draw(size=(1, 1, P))
    y = y + SD["loss x prompt"] * draw(size=(L, 1, P)) + SD["loss x seed"] * draw(size=(L, S, 1))
    return y + SD["residual"] * draw(size=(L, S, P))


def test_known_components_are_found():
    rng = np.random.default_rng(0)
    found = pd.DataFrame([variance_components(frame(simulated(rng))) for _ in range(60)])
    for name, sd in SD.items():
        error = found[name].std() / math.sqrt(60)
        assert found[name].mean() == pytest.approx(sd**2, abs=4 * error), name


def judged(rng, y, judges, judge_sd, noise_sd):
    """The same texts, worth y, seen by all judges: [loss, seed, prompt, judge]."""
    return y[..., None] + judge_sd * rng.normal(size=judges) + noise_sd * rng.normal(size=(*y.shape, judges))


@pytest.mark.parametrize(("judges", "noise_sd"), [(2, 0.3), (6, 1.2)])
def test_known_components_of_the_same_texts_by_several_judges(judges, noise_sd):
    rng, rounds = np.random.default_rng(judges), 100
    draws = (judged(rng, simulated(rng, 6, 5, 20), judges, 0.7, noise_sd) for _ in range(rounds))
    found = pd.DataFrame([variance_components(frame(y, ("loss", "seed", "prompt", "judge"))) for y in draws])
    for name, sd in (SD | {"text": SD["residual"], "judge": 0.7, "residual": noise_sd}).items():
        error = found[name].std() / math.sqrt(rounds)
        assert found[name].mean() == pytest.approx(sd**2, abs=4 * error), name


def test_judges_by_hand():
    # two judges apart by 2 on all of 4 texts, and by +1, -1, -1, +1 beyond that: judges' means 1, -1
    rest = np.array([0.5, -0.5, -0.5, 0.5]).reshape(2, 1, 2)
    y = np.stack([1 + rest, -1 - rest], -1)
    found = variance_components(frame(y, ("loss", "seed", "prompt", "judge")))
    assert found["residual"] == pytest.approx(8 * 0.25 / 3)  # 8 squares of .5 over (4 - 1) (2 - 1)
    assert found["judge"] == pytest.approx(2 - 8 * 0.25 / 3 / 4)  # variance of 1 and -1, less the residual's part
    assert found[["loss", "prompt", "text"]].tolist() == [0, 0, 0]  # judges' means are all 0


def test_one_judge_tells_nothing_of_judges():
    y = np.random.default_rng(0).normal(size=(3, 2, 20))
    alone = variance_components(frame(y[..., None], ("loss", "seed", "prompt", "judge")))
    assert np.isnan(alone[["judge", "text"]]).all()
    assert alone.drop(["judge", "text"]).to_dict() == pytest.approx(variance_components(frame(y)).to_dict())


def test_two_losses_two_seeds_two_prompts_by_hand():
    # y = 4 * loss + rest; rest is +1, -1 by the product of the three signs: orthogonal to every effect
    sign = np.array([-1.0, 1.0])
    rest = sign[:, None, None] * sign[None, :, None] * sign[None, None, :]
    found = variance_components(frame(4 * sign[:, None, None] + rest))
    # rest: 8 over the df that are left, 7 - 5 = 2 (seed x prompt and all three); MS_loss = 16 * 8 = 128
    assert found["residual"] == pytest.approx(4.0)
    # both interactions (0 - 4) / 2 = -2, so E MS_loss = 4 + 2 * -2 + 2 * -2 + 4 var
    assert found["loss"] == pytest.approx((128 - 4 + 4 + 4) / 4)
    assert found["loss x prompt"] == 0 and found["loss x seed"] == 0


def test_what_one_seed_cannot_tell():
    rng = np.random.default_rng(0)
    found = variance_components(frame(rng.normal(size=(3, 1, 20))))
    assert np.isnan(found[["seed", "loss x seed", "loss x prompt"]]).all()
    assert np.isfinite(found[["loss", "prompt", "residual"]]).all()


def test_incomplete_prompts_are_dropped_and_counted():
    y = np.random.default_rng(0).normal(size=(3, 2, 20))
    whole = variance_components(frame(y[..., :18]))
    y[0, 1, 18] = math.nan
    lacking = frame(y).query("not (prompt == 19 and seed == 0)")
    found = variance_components(lacking)
    assert found.attrs["dropped"] == 2
    assert found.to_dict() == pytest.approx(whole.to_dict())
    with pytest.raises(ValueError, match="No prompt has a value in every combination of loss, seed"):
        variance_components(frame(y).query("loss == seed"))
