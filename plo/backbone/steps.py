"""Division of an optimiser step's pairs into micro-batches and among processes."""

from collections.abc import Sequence
from itertools import pairwise

from plo import distributed
from plo.config import ConfigError, TrainConfig
from plo.data import Pair
from plo.data.completions import Completions
from plo.losses import Loss


def micro_batches(config: TrainConfig, loss: Loss) -> tuple[int, int]:
    """Return the number of pairs of a forward pass on each device, and of such passes in an optimiser step."""
    processes = distributed.processes()
    share, rest = divmod(config.batch_size, processes)
    micro = min(config.micro_batch_size or share, share)
    if rest or share % micro:
        raise ConfigError(
            f"train.batch_size={config.batch_size} is the batch of all {processes} processes together, which cannot "
            f"share it in passes of {max(1, micro)} pairs each: set a multiple of {processes * max(1, micro)}, or start "
            f"another number of processes."
        )
    if micro < config.batch_size and loss.level == "batch":
        remedy = f"set train.micro_batch_size={config.batch_size}" if processes == 1 else "start one process"
        raise ConfigError(
            f"The loss {loss.name!r} compares the pairs of a whole optimiser step, and gradient accumulation or "
            f"several processes would show it {micro} of {config.batch_size}: {remedy}."
        )
    return micro, share // micro


def arrange(rows: Sequence[int], sizes: Sequence[int], parts: int, alike: bool) -> list[list[int]]:
    """Divide the rows of an optimiser step into parts of equal count, by their length.

    Args:
        alike: whether rows of similar length go together, for little padding. Otherwise each part gets long and short
            rows, so that parts (micro-batches, devices) take about the same time and memory.
    """
    longest_first = [row for _, row in sorted(zip(sizes, rows, strict=True), reverse=True)]
    if alike:
        edges = [len(rows) * part // parts for part in range(parts + 1)]
        return [longest_first[first:last] for first, last in pairwise(edges)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for start in range(0, len(rows), parts):  # there and back: who got the longest gets the shortest next
        turn = range(parts) if start // parts % 2 == 0 else reversed(range(parts))
        for part, row in zip(turn, longest_first[start : start + parts], strict=False):
            dealt[part].append(row)
    return dealt


def longest(pair: Pair | Completions) -> int:
    """Return the number of tokens of a pair's longer sequence, prompt included."""
    return len(pair.prompt_ids) + max(map(len, pair.responses))


def tokens_of(pair: Pair, packed: bool) -> int:
    """Return the number of tokens that a forward pass processes for a pair, excluding padding between pairs."""
    return sum(map(len, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))) if packed else 2 * longest(pair)
