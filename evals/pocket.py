"""Gold reward of the pocket task, and how much of the reward that its KL allows a policy reaches."""

import numpy as np
import pandas as pd

from plo.evals.registry import EvaluationError, register_evaluation
from plo.pocket import PocketError, Prompt, Walk, frontier, ids_of, language


def walk_of(samples: pd.DataFrame) -> tuple[list[Prompt], Walk]:
    """Return the prompt of each sample, and the samples' path through the automaton.

    Raises:
        EvaluationError: the samples are not of the pocket task.
    """
    try:
        asked = [Prompt.read(text) for text in samples["prompt"]]
        ids = [ids_of(text, finished=bool(end)) for text, end in zip(samples["text"], samples["finished"], strict=True)]
    except PocketError as error:
        raise EvaluationError(
            f"The samples are not of the pocket task: {error} Set data=pocket, model=pocket."
        ) from error
    return asked, language().walk(asked, ids)


@register_evaluation(
    "pocket",
    main_score="reward",
    higher_is_better={"reward": True, "forbidden": False},
    digits=2,
    meaning={
        "reward": "exact gold reward of the response: the sum of what its tokens pay",
        "forbidden": "tokens per response that the grammar forbids; each costs 1",
    },
)
def pocket(samples: pd.DataFrame) -> pd.DataFrame:
    """Compute `reward`, the exact gold reward of a response to a prompt of the pocket task, and `forbidden`, its tokens that
    the grammar forbids.

    Raises:
        EvaluationError: the samples are not of the pocket task.
    """
    _, walk = walk_of(samples)
    columns = {"reward": walk.reward.sum(1), "forbidden": walk.forbidden.sum(1)}
    return pd.DataFrame(columns, index=samples.index, dtype=float)


@register_evaluation(
    "efficiency",
    level="prompt",
    higher_is_better=True,
    digits=2,
    meaning="(reward - reward of the reference) / (best reward at this KL - reward of the reference)",
)
def efficiency(samples: pd.DataFrame) -> pd.DataFrame:
    """Compute `efficiency`, the gain in reward over the reference, as a share of the best possible gain at the policy's KL.

        efficiency = (mean R - mean V) / (frontier(mean KL) - mean V)

    V is the exact value of each prompt under the reference, and the frontier is exact, too. A prompt's number has its own
    R - V above the common denominator, so that their mean is the efficiency. It is NaN where the policy is the reference.

    Raises:
        EvaluationError: the samples are not of the pocket task.
    """
    asked, _ = walk_of(samples)
    if "reward" not in samples:
        raise EvaluationError("The evaluation 'efficiency' needs the column 'reward': also run 'pocket'.")
    gain = samples["reward"] - language().values[language().start(asked)]
    by_prompt = gain.groupby(samples["prompt_id"]).mean()
    first = samples.groupby("prompt_id").head(1)
    best = frontier([Prompt.read(text) for text in first["prompt"]])
    kl = samples.groupby("prompt_id")["kl"].mean().mean()
    possible = best.gold(float(kl)) - best.gold(0.0)
    return (by_prompt / (possible if possible > 1e-3 else np.nan)).rename("efficiency").to_frame()
