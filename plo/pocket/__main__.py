"""Print the properties of the pocket task, measured on 9,216 responses of the reference: `python -m plo.pocket`."""

from collections.abc import Iterator

import numpy as np

from plo.pocket import Prompt, frontier, language, pairs, prompt_sets, prompts
from plo.pocket.words import ID, PROMISERS, WORDS

EACH = 8  # responses per prompt
KLS = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)


def properties() -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each property."""
    asked: list[Prompt] = prompts() * EACH
    walk = language().walk(asked, language().sample(asked, 0))
    lengths, reward = walk.mask.sum(1), walk.reward.sum(1)
    own, advantage = walk.reward[walk.mask] != 0, walk.advantages(language().values)[walk.mask]
    soft, ids = walk.advantages(language().soft_values(1.0))[walk.mask], walk.ids[walk.mask]
    marks = (walk.ids == ID["!"]).sum(1)
    squares = advantage**2

    yield "words, prompts", f"{len(WORDS)}, {len(prompts())}"
    yield "prompts for training, tuning, test", ", ".join(str(len(own)) for own in prompt_sets().values())
    yield "states, transitions", f"{language().automaton.states:,}, {len(language().automaton.source):,}"
    yield "tokens per response: mean, least, most", f"{lengths.mean():.1f}, {lengths.min()}, {lengths.max()}"
    within = np.sqrt(reward.reshape(EACH, -1).var(0, ddof=1).mean())
    yield "reward: mean, sd, sd within a prompt", f"{reward.mean():.2f}, {reward.std():.2f}, {within:.2f}"
    yield "correlation of reward with the number of `!`", f"{np.corrcoef(marks, reward)[0, 1]:.2f}"
    yield "correlation of reward with length", f"{np.corrcoef(lengths, reward)[0, 1]:.2f}"
    yield (
        "advantage at `!`: mean, greatest size",
        "{:.3f}, {:.3f}".format(advantage[ids == ID["!"]].mean(), np.abs(advantage[ids == ID["!"]]).max()),
    )
    yield "tokens with |A| > 0.5", f"{(np.abs(advantage) > 0.5).mean():.0%}"
    yield "tokens without a reward of their own", f"{1 - own.mean():.0%}"
    yield "their share in the sum of A^2", f"{squares[~own].sum() / squares.sum():.0%}"
    means = ", ".join(f"{word} {advantage[ids == ID[word]].mean():+.1f}" for word in PROMISERS)
    yield "mean advantage of who promises", means
    yield "correlation of A with the soft advantage at beta 1", f"{np.corrcoef(advantage, soft)[0, 1]:.2f}"
    labels = np.array([row["margin"] > 0 for row in pairs(0) if row["split"] == "train"])
    yield "labels that agree with the gold reward", f"{labels.mean():.0%}"
    best = frontier(prompt_sets()["test"])
    yield "best reward at a KL in nats", ", ".join(f"{best.gold(kl):.1f} at {kl:g}" for kl in KLS)


if __name__ == "__main__":
    for name, value in properties():
        print(f"{name:52} {value}")
