"""Completions that are not a pair's own, which some losses read after the pair's prompt, as KTO's mismatched ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plo.configured import read_call, resolve_params
from plo.data.errors import DataError
from plo.data.tokenize import Ids, Pair
from plo.registry import Entry, NoFacts, Registry

PREFIX = "completion:"  # of such completions in a loss's `needs`

PROVIDERS: Registry[NoFacts] = Registry("completion", group="plo.completions")


@dataclass(frozen=True)
class Completions:
    """Completions of one prompt: its sequences are `prompt_ids + response`, one for each of `responses`."""

    prompt_ids: Ids
    responses: tuple[Ids, ...]


def register_completion(name: str) -> Callable:
    """Register a provider: a function of the training pairs that returns the token ids of one completion for each.

    A loss names it in `needs=("completion:NAME(key=value)",)` and reads `pairs.completions["NAME(key=value)"]`, a `Side`
    of log-probs of the completions after the pairs' own prompts, under policy and reference, without gradient. A
    completion depends on the data alone, so that the reference's log-probs are computed once and kept.

    Example:
        >>> @register_completion("chosen_again")
        ... def chosen_again(pairs): return [pair.chosen_ids for pair in pairs]
    """
    return PROVIDERS.register(name)


@register_completion("mismatched")
def mismatched(pairs: Sequence[Pair], *, side: Literal["chosen", "rejected"]) -> list[Ids]:
    """Take the chosen or rejected response of the next pair, in the data's order, that has another prompt."""
    count, other = len(pairs), -1
    found: list[int] = [other] * count
    for place in reversed(range(2 * count)):  # twice round: after the last pair comes the first
        this, following = place % count, (place + 1) % count
        if pairs[this].prompt_ids != pairs[following].prompt_ids:
            other = following
        found[this] = other
    if other < 0:
        raise DataError(
            f"All {count} training pairs have one prompt, so that no response is mismatched to it: use data with several."
        )
    return [pairs[i].chosen_ids if side == "chosen" else pairs[i].rejected_ids for i in found]


def provider_of(need: str) -> Entry[NoFacts] | None:
    """Return the registered provider that a need names; None if it names no completion or an unknown one."""
    name = need.removeprefix(PREFIX).partition("(")[0]
    return PROVIDERS[name] if need.startswith(PREFIX) and name in PROVIDERS else None


def check_completion(need: str) -> tuple[Callable[..., list[Ids]], dict[str, Any]]:
    """Return the provider that a need or its name calls, and its arguments.

    Raises:
        RegistryError, HyperParameterError: no such provider, or not with these arguments.
    """
    name, params = read_call(need.removeprefix(PREFIX))
    entry = PROVIDERS[name]
    return entry.load(), resolve_params("completion", entry, params)


def completion_names(needs: Iterable[str]) -> list[str]:
    """Return the names of the completions that a loss needs, arguments included."""
    return [need.removeprefix(PREFIX) for need in needs if need.startswith(PREFIX)]


def completions(pairs: Sequence[Pair], needs: Iterable[str]) -> list[Completions] | None:
    """Return the completions that a loss needs, in the order of its needs; None if it needs none.

    A completion is cut where its sequence would be longer than the longest of the pairs.

    Raises:
        RegistryError, HyperParameterError: no such provider, or not with these arguments.
        DataError: the data have no such completion.
    """
    if not (names := completion_names(needs)):
        return None
    longest = max(len(pair.prompt_ids) + max(map(len, pair.responses)) for pair in pairs)
    columns = [function(pairs, **params) for function, params in map(check_completion, names)]
    return [
        Completions(pair.prompt_ids, tuple(ids[: longest - len(pair.prompt_ids)] for ids in own))
        for pair, *own in zip(pairs, *columns, strict=True)
    ]
