"""Training pairs of a cell: those of the data source, or answers of the policy that its training starts from.

A round is a cell. Round 1 samples the policy that every training starts from; round r starts from the model that round
r - 1 trained (of the same variant and seed) and samples that. The reference stays the experiment's.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plo.config import ConfigError
from plo.data import Pair
from plo.experiment.answers import Answers, sampled
from plo.experiment.drawn import Drawn
from plo.experiment.keys import Cell
from plo.experiment.preflight import check_columns, losses_with_stages
from plo.experiment.workbench import Workbench
from plo.origin import Origin
from plo.paths import text_digest
from plo.preference_rules import is_turned


@dataclass(frozen=True)
class Previous:
    """The finished cell of the round before: its name, the folder of its model, and the queries up to its end."""

    name: str
    model: Path
    queries: int


@contextmanager
def with_pairs(bench: Workbench, cell: Cell, previous: Callable[[], Previous]) -> Iterator[Workbench]:
    """Yield the workbench with a cell's training pairs, and with its start inside, sampling first what is missing.

    Args:
        bench: workbench of the cell's seed.
        previous: returns the finished cell of the round before; called from the second round on.

    Raises:
        ConfigError: the pairs lack what the loss needs, or the answers give no pair.
    """
    origin = cell.variant.origin if cell.variant is not None else Origin()
    if cell.variant is None or origin == Origin():
        yield bench
        return
    backbone, experiment, pairs = bench.backbone, bench.experiment, bench.data.train
    before, first, answers, queries, about = backbone.start, "start", None, 0, dict[str, Any]()
    try:
        if origin.round > 1:
            earlier = previous()
            backbone.reset(cell.seed)
            backbone.restore(earlier.model)
            backbone.start_from(backbone.weights(), reference=False)
            first, queries = earlier.name, earlier.queries
        if origin.round:
            seed, config = 0 if experiment.share_stages else cell.seed, experiment.data.sample
            policy = config.policy if origin.round == 1 and config.policy is not None else first
            where = {"seed": seed, "number": origin.round, "policy": policy}
            answers = sampled(bench.stages, experiment, bench.tokenizer, pairs, backbone.start, **where)
            queries += answers.queries
            pairs = answers.pairs(config.rule, pairs, seed)
            about = {"round": origin.round, "policy": policy, "prompts": len(answers.prompts), "k": config.k}
            about |= {"temperature": config.temperature, "oracle": answers.oracle, "rule": config.rule}
        if not pairs:
            raise ConfigError(
                f"{cell.name}: no prompt has two different answers with different scores, so that there are no pairs: raise "
                f"data.sample.k or data.sample.temperature, or name another scorer."
            )
        turned = with_noise(pairs, origin.flip, cell.seed)
        about |= {"flip": origin.flip, "turned": sum(a is not b for a, b in zip(pairs, turned, strict=True))}
        about |= {"pairs": len(turned)}
        check_columns(losses_with_stages([cell.variant]), turned)
        drawn = Drawn(answers, queries, about, _start_kl(bench, answers, origin))
        data, stages = replace(bench.data, train=turned), replace(bench.stages, pairs=turned, _digests={})
        yield replace(bench, data=data, stages=stages, drawn=drawn)
    finally:
        backbone.start = before


def _start_kl(bench: Workbench, answers: Answers | None, origin: Origin) -> float | None:
    """Return KL from the policy of the answers to the policy that training starts from: 0 if it is the same one at T = 1."""
    if answers is None:
        return None
    config = bench.experiment.data.sample
    if (config.policy is None or origin.round > 1) and config.temperature == config.top_p == 1:
        return 0.0
    with bench.backbone.holding(bench.backbone.start):
        return answers.kl(bench.backbone)[0]


def with_noise(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """Return pairs of which a share has its label turned round, chosen by seed and content; the others are the same objects."""
    return [_turned(pair) if share and is_turned(share, seed, _content(pair)) else pair for pair in pairs]


def _content(pair: Pair) -> str:
    return text_digest(json.dumps([pair.prompt_ids, pair.chosen_ids, pair.rejected_ids]))


def _turned(pair: Pair) -> Pair:
    """Return a pair with its label turned round: columns of the two sides change places, and a margin its sign."""
    columns = {_other_side(name): -value if name == "margin" else value for name, value in pair.columns.items()}
    row = pair.row and replace(pair.row, chosen=pair.row.rejected, rejected=pair.row.chosen, columns=columns)
    return replace(pair, chosen_ids=pair.rejected_ids, rejected_ids=pair.chosen_ids, columns=columns, row=row)


def _other_side(column: str) -> str:
    sides = {"chosen": "rejected", "rejected": "chosen"}
    return "_".join(sides.get(part, part) for part in column.split("_"))
