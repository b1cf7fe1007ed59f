"""Preference pairs of the pocket task, drawn from the reference, and its three disjoint sets of prompts."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from plo.paths import text_digest
from plo.pocket.language import PocketError, Prompt, language, prompts
from plo.pocket.words import EOS, WORDS

TRAIN = 980  # prompts; the others are held out
HELD_OUT_PAIRS = 2  # per prompt
NOISE = 2.0  # units of reward: the label is drawn from sigmoid(difference of the rewards / NOISE)
_HELD_OUT_SEED = 2**31  # held-out pairs are the same for every seed


@functools.cache
def prompt_sets() -> dict[str, list[Prompt]]:
    """Return the prompts of "train", "tune" and "test", three disjoint sets chosen by hash.

    "tune" are the held-out prompts that an experiment with tuning takes for it (`plo.data.split.is_for_tuning`).
    """
    ordered = sorted(prompts(), key=lambda prompt: text_digest(prompt.text))
    held_out = {prompt: int(text_digest(f"tune:{prompt.text}")[:13], 16) / 16**13 < 0.5 for prompt in ordered[TRAIN:]}
    return {
        "train": ordered[:TRAIN],
        "tune": [prompt for prompt, tune in held_out.items() if tune],
        "test": [prompt for prompt, tune in held_out.items() if not tune],
    }


def held_out_set(name: str) -> list[Prompt]:
    """Return the prompts of "tune" or "test".

    Raises:
        PocketError: another name.
    """
    if name not in ("tune", "test"):
        raise PocketError(f"held_out={name!r} is no set of held-out prompts of the pocket task: write tune or test.")
    return prompt_sets()[name]


def text_of(response: list[int]) -> str:
    """Return the text of a response's ids, without EOS, after the space that separates it from the prompt."""
    return "".join(f" {WORDS[token]}" for token in response if WORDS[token] != EOS)


def pairs(seed: int, count: int = 2000) -> Iterator[dict[str, Any]]:
    """Yield raw rows of the pocket task: `count` training pairs drawn by a seed, and the held-out pairs, equal for all seeds.

    Each pair is two responses that the reference gives to one prompt, labelled by a draw from
    sigmoid((R(a) - R(b)) / 2). The column `margin` is the reward of chosen less that of rejected.
    """
    known = prompt_sets()["train"]
    yield from _drawn([known[i % len(known)] for i in range(count)], seed, "train", f"pocket, seed {seed}")
    asked = prompt_sets()["tune"] + prompt_sets()["test"]
    yield from _drawn(asked * HELD_OUT_PAIRS, _HELD_OUT_SEED, "eval", "pocket, held out")


def _drawn(asked: list[Prompt], seed: int, split: str, where: str) -> Iterator[dict[str, Any]]:
    """Draw two different responses to each prompt, and their label."""
    first, second = (language().sample(asked, (seed, side)) for side in (0, 1))
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        attempt = 2
        while a == b:
            [second[row]] = [b] = language().sample(asked[row : row + 1], (seed, attempt, row))
            attempt += 1
    rewards = [language().walk(asked, responses).reward.sum(1) for responses in (first, second)]
    margin = rewards[0] - rewards[1]
    chosen = np.random.default_rng((seed, 2)).random(len(asked)) < 1 / (1 + np.exp(-margin / NOISE))
    for row, prompt in enumerate(asked):
        a, b = text_of(first[row]), text_of(second[row])
        yield {
            "prompt": prompt.text,
            "chosen": a if chosen[row] else b,
            "rejected": b if chosen[row] else a,
            "margin": float(margin[row] if chosen[row] else -margin[row]),
            "split": split,
            "where": f"{where}[{row}]",
        }
