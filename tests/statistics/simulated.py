"""Tables of outcomes with a known truth, many experiments at once: [experiments, ..., prompts, seeds]."""

import numpy as np


def wins(rng, experiments, prompts, seeds, seed_sd, losses=1, loss_sd=0.0):
    """1 or 0 for every cell, mean .5: a win probability a prompt from Beta(2, 2), moved by seed, loss x prompt, loss x seed.

    Between two losses seeds differ by sd `seed_sd`, whatever `losses` is; seeds and prompts are shared by the losses.
    """
    of_prompt = rng.beta(2, 2, (experiments, 1, prompts, 1))
    of_seed = rng.normal(0, seed_sd, (experiments, 1, 1, seeds))
    chance = of_prompt + of_seed
    if losses > 1:
        chance = chance + rng.normal(0, loss_sd, (experiments, losses, prompts, 1))
        chance = chance + rng.normal(0, seed_sd / np.sqrt(2), (experiments, losses, 1, seeds))
    return (rng.random((experiments, losses, prompts, seeds)) < chance).astype(float)
