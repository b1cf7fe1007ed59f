"""Words of a text, and the share of distinct n-grams among texts."""

import math
import re
from collections.abc import Hashable, Sequence

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Return lower-cased words (a contraction is one word) and punctuation marks, each mark by itself."""
    return _WORD.findall(text.lower())


def count_ngrams(texts: Sequence[Sequence[Hashable]], n: int) -> tuple[int, int]:
    """Return the numbers of unique and of all n-grams of texts that are given as words."""
    grams = [gram for text in texts for gram in zip(*(text[i:] for i in range(n)), strict=False)]
    return len(set(grams)), len(grams)


def distinct_share(texts: Sequence[Sequence[Hashable]], n: int = 1) -> float:
    """Return unique / total n-grams over all texts together, given as words, in (0, 1]; NaN if there are none.

    Source: Li et al., A diversity-promoting objective function (2016), https://arxiv.org/abs/1510.03055.

    Example:
        >>> distinct_share([["a", "b", "a"], ["b", "c"]])
        0.6
    """
    unique, total = count_ngrams(texts, n)
    return unique / total if total else math.nan
