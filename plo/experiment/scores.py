"""Token weights of an experiment's training pairs, which a scorer computes once.

They are kept under the hash of everything they depend on; a killed scoring continues after its last complete file.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plo import distributed, store
from plo.backbone import sharding
from plo.backbone.borrowed import attending
from plo.backbone.limits import check_rows
from plo.caches import CACHES
from plo.config import ConfigError
from plo.data import Pair
from plo.data.tokenize import tokenizer_identity
from plo.experiment.stages import Stages
from plo.identity import sha256
from plo.scorers import Scorer, ScorerError, Scores
from plo.tracking import STAGE

SHARD_PAIRS = 256  # pairs per file, which is what a crash can cost
VERSION = 1  # of the format of the files


def token_weights(stages: Stages, scorer: Scorer, seed: int) -> list[Scores]:
    """Return the weights ((T_w,), (T_l,)) of every training pair, computing them first if they are missing."""
    own = CACHES["scores"].path(scores_key(stages, scorer, seed))
    starts = range(0, len(stages.pairs), SHARD_PAIRS)
    shards = {f"{start}.safetensors": slice(start, start + SHARD_PAIRS) for start in starts}
    params = {"scorer": scorer.name, "seed": seed if scorer.seeded else "all", "pairs": len(stages.pairs)}
    with stages.recording(own, list(shards), f"scores {scorer.name}", params) as (run, missing):
        try:
            inner: Sequence[Scores] = []
            if missing:
                for label, stage in scorer.stages.items():
                    stages.make(stage, label)  # before the scorer runs, as gradients are off inside it
                if scorer.inner is not None:
                    inner = token_weights(stages, scorer.inner, seed)
            for name in missing:
                path, part, started = own / name, shards[name], time.perf_counter()
                made = _Material(stages, scorer, seed, stages.pairs[part], inner[part]).scored()
                seconds = time.perf_counter() - started
                distributed.on_main(lambda made=made, path=path, s=seconds: _write(made, path, s), share=False)
            seconds = distributed.on_main(lambda: sum(_seconds(own / name) for name in shards))
        finally:
            stages.release()
        run.artifacts(own, STAGE)
        run.finish({"seconds": seconds, "pairs": len(stages.pairs)})
    return [weights for name, part in shards.items() for weights in _read(own / name, stages.pairs[part])]


def scores_key(stages: Stages, scorer: Scorer, seed: int) -> str:
    """Return the hash of everything that the weights depend on. It is equal for all seeds unless the scorer is seeded."""
    parts: list[Any] = [VERSION, scorer.source, seed if scorer.seeded else 0, stages.digest()]
    parts += [sorted(pair.columns.items()) for pair in stages.pairs]
    parts += [stages.key(stage) for stage in scorer.stages.values()]
    backbone = stages.backbone
    parts += [backbone.reference.identity, str(backbone.compute_dtype)] if _reads_reference(scorer) else []
    parts += [backbone.start.identity] if "model" in scorer.reads else []
    if "tokenizer" in scorer.reads:
        special = {id: str(token) for id, token in stages.tokenizer.added_tokens_decoder.items() if token.special}
        parts += [stages.tokenizer.eos_token_id, sorted(special.items())]
    if "texts" in scorer.reads:  # tokenisation and chat template count too
        parts += [tokenizer_identity(stages.tokenizer), *(repr(pair.row) for pair in stages.pairs)]
    return sha256(parts)


def _of_responses(logps: Sequence[tuple[Tensor, ...]]) -> list[Scores]:
    """Return the log-probs of both responses, without those of extra sequences of a loss."""
    return [(chosen, rejected) for chosen, rejected, *_ in logps]


def _reads_reference(scorer: Scorer) -> bool:
    return bool(scorer.stages) or "model" in scorer.reads


class _Material:
    """Material that a scorer works from; see `plo.scorers.Material`."""

    def __init__(self, stages: Stages, scorer: Scorer, seed: int, pairs: Sequence[Pair], inner: Sequence[Scores]):
        self.pairs, self.seed, self.tokenizer = pairs, seed if scorer.seeded else 0, stages.tokenizer
        self._stages, self._scorer, self._inner = stages, scorer, inner
        self._entered, self._attends = contextlib.ExitStack(), False

    def scored(self) -> list[Scores]:
        """Return the scores of these pairs."""
        with self._entered, self._stages.backbone.evaluating():
            return list(self._scorer(self))

    def scores(self) -> Sequence[Scores]:
        return self._inner

    def logps(self, stage: str | None = None) -> Sequence[Scores]:
        references = self._stages.store
        if stage is None:
            if not _reads_reference(self._scorer):
                raise self._undeclared()
            return _of_responses(references.get(self._stages.backbone, self.pairs).logps)
        name, _, kind = stage.partition(".")
        wanted = self._scorer.stages[name]
        if kind == "reference":
            return _of_responses(references.get(self._stages.base(wanted), self.pairs).logps)
        return self._stages.logps(wanted, name, self.pairs)

    def logps_after(self, prompts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Sequence[Scores]:
        if not _reads_reference(self._scorer):
            raise self._undeclared()
        backbone, sides = self._stages.backbone, []
        for side in (0, 1):  # a pair has one prompt, so that each response is one of a pair with its own first token
            asked = []
            for pair, both in zip(self.pairs, prompts, strict=True):
                ids = (pair.chosen_ids, pair.rejected_ids)[side]
                asked.append(replace(pair, prompt_ids=tuple(both[side]), chosen_ids=ids, rejected_ids=ids[:1]))
            check_rows(backbone.causal_lm, asked)
            sides.append([logps for logps, _ in self._stages.store.get(backbone, asked).logps])
        return list(zip(*sides, strict=True))

    def attending_model(self) -> nn.Module:
        backbone = self._stages.backbone
        if "model" not in self._scorer.reads:
            raise self._undeclared()
        if sharding.is_sharded(backbone):
            raise ConfigError(
                f"The token scorer {self._scorer.name!r} reads attention weights, which a sharded model does not give: "
                f"compute them first in one process, with `plo scores {self._scorer.name}`."
            )
        if not self._attends:
            self._attends = True
            self._entered.enter_context(backbone.holding(backbone.start))
            self._entered.enter_context(attending(backbone.causal_lm, "eager"))  # the only one that returns them
        return backbone.causal_lm

    def _undeclared(self) -> ScorerError:
        return ScorerError(
            f"The token scorer {self._scorer.name!r} ({self._scorer.entry.origin}) uses the model without declaring it, so that "
            f'its weights would be reused for other models: register it with reads=("model",).'
        )


def _write(scores: Sequence[Scores], path: Path, seconds: float) -> None:
    weights = torch.cat([part.cpu() for sides in scores for part in sides])
    store.write(path, lambda aside: save_file({"weights": weights}, aside, {"seconds": repr(seconds)}))


def _seconds(path: Path) -> float:
    """Return the seconds that computing the weights of a file took."""
    with safe_open(path, framework="pt") as file:
        return float((file.metadata() or {}).get("seconds", 0))


def _read(path: Path, pairs: Sequence[Pair]) -> list[Scores]:
    values = load_file(path)["weights"]
    parts = iter(values.split([len(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]))
    return list(zip(parts, parts, strict=True))
