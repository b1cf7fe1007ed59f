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


def simulated(rng, L=12, S=10, P=60, J=None):
    draw = rng.normal
    y = SD["loss"] * draw(size=(L, 1, 1)) + SD["seed"] * draw(size=(1, S, 1)) + SD["prompt"] * draw(size=(1, 1, P))
    y = y + SD["loss x prompt"] * draw(size=(L, 1, P)) + SD["loss x seed"] * draw(size=(L, S, 1))
    if J:
        y = y[..., None] + 0.7 * draw(size=(1, 1, 1, J))
    return y + SD["residual"] * draw(size=(L, S, P, J) if J else (L, S, P))


def test_known_components_are_found():
    rng = np.random.default_rng(0)
    found = pd.DataFrame([variance_components(frame(simulated(rng))) for _ in range(60)])
    for name, sd in SD.items():
        error = found[name].std() / math.sqrt(60)
        assert found[name].mean() == pytest.approx(sd**2, abs=4 * error), name


def test_known_components_with_judges():
    rng, names = np.random.default_rng(1), ("loss", "seed", "prompt", "judge")
    found = pd.DataFrame([variance_components(frame(simulated(rng, 6, 5, 20, 6), names)) for _ in range(60)])
    for name, sd in (SD | {"judge": 0.7}).items():
        error = found[name].std() / math.sqrt(60)
        assert found[name].mean() == pytest.approx(sd**2, abs=4 * error), name


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
