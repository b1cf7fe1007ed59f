"""Texts cut to a common length, because measures of diversity fall or rise with length alone."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from plo.statistics.intervals import StatisticsError

Tokens = Sequence[Hashable]
Samples = Mapping[Hashable, Sequence[Tokens]]  # {prompt: its samples}


def cut_to_common_length(
    samples: Mapping[str, Samples], tokens: int | None = None, *, share: float = 0.5
) -> tuple[int, dict[str, dict[Hashable, list[Tokens]]]]:
    """Return the first m tokens of every sample, for the prompts whose samples all have as many in every variant.

    Diversity measured on the result differs between variants for other reasons than length. A prompt with a shorter sample
    in any variant is left out for all.

    Args:
        samples: for each variant the token lists (or word lists) of its samples of each prompt.
        tokens: m; None: the largest that leaves at least `share` of the prompts that all variants have.

    Returns:
        m, and {variant: {prompt: its samples, cut}} with the same prompts for every variant.

    Raises:
        StatisticsError: no prompt is common to all variants, or none is left.
    """
    everywhere = list(samples.values())
    common = [p for p in everywhere[0] if all(p in by_prompt for by_prompt in everywhere)] if everywhere else []
    shortest = {
        prompt: min((len(text) for by_prompt in everywhere for text in by_prompt[prompt]), default=0)
        for prompt in common
    }
    if not shortest:
        raise StatisticsError("No prompt is common to all variants, so their texts have no common length.")
    if tokens is None:
        keep = max(1, int(np.ceil(share * len(shortest))))
        tokens = sorted(shortest.values(), reverse=True)[keep - 1]
    kept = [prompt for prompt in common if shortest[prompt] >= tokens]
    if not kept or tokens < 1:
        longest = max(shortest.values())
        raise StatisticsError(
            f"No prompt has {max(tokens, 1)} tokens in every sample of every variant; the longest common length is {longest}."
        )
    cut = {
        name: {prompt: [text[:tokens] for text in by_prompt[prompt]] for prompt in kept}
        for name, by_prompt in samples.items()
    }
    return tokens, cut
