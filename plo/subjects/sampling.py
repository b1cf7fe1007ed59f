"""Sampling of continuations of held-out prompts, with statistics of policy and reference."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import GenerationConfig, PreTrainedTokenizerBase

from plo import store
from plo.backbone.batch import collate_groups
from plo.backbone.limits import check_length
from plo.backbone.model import Backbone
from plo.backbone.out_of_memory import Passes
from plo.config import EvaluationConfig
from plo.data import Pair
from plo.subjects.engines.engine import Adapter, Engine, Request
from plo.subjects.engines.local import Local
from plo.subjects.noise import noise_key
from plo.subjects.subject import Sampling

PASS_SEQUENCES = 16  # sequences per scoring pass
VERSION = 2  # of the way a token is drawn; samples, cells and evaluations of another version are not mixed with these
LOWER_SCORED = "Lower evaluation.samples or evaluation.max_new_tokens, or use a smaller model"


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt: its token ids, as in training, and its text."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Draw:
    """One model's part of what is drawn.

    Attributes:
        seed: seed of its noise.
        adapter: its adapter; None: the engine's own model, which is the one in memory for transformers.
        folder: folder that keeps samples batch by batch, so that no process draws them again.
    """

    seed: int
    adapter: Adapter | None = None
    folder: Path | None = None


def held_out_prompts(pairs: Sequence[Pair], count: int) -> list[Prompt]:
    """Return the first `count` distinct prompts in the order of the data set, equal for every loss and seed."""
    prompts: dict[str, Prompt] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt, Prompt(tuple(pair.prompt_ids), pair.prompt))
    return list(prompts.values())[:count]


def sample(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    seed: int,
) -> pd.DataFrame:
    """Sample continuations and return them with their statistics, one row per sample, in the order of the prompts.

    The seed fixes the noise of every token equally for every policy. `kl` and `entropy` are always those of samples at temperature 1
    and the full distribution: of the row's continuation or, if the configuration samples differently, of an additional
    one.

    Returns:
        Columns prompt_id, sample, prompt, text, tokens (EOS included), finished (ended by EOS),
        kl (nats, KL(pi || ref) summed over the sample's tokens, full vocabulary), entropy (nats, mean over tokens, of pi),
        ref_nll (nats per token, -log ref(y | x) / tokens).
    """
    responses = _generate(backbone, tokenizer, prompts, config, seed)
    scores = _score(backbone, prompts, responses)
    if (config.temperature, config.top_p) != (1.0, 1.0):
        plain = config.model_copy(update={"temperature": 1.0, "top_p": 1.0})
        free = _score(backbone, prompts, _generate(backbone, tokenizer, prompts, plain, seed))
        scores = [
            {**score, "kl": other["kl"], "entropy": other["entropy"]} for score, other in zip(scores, free, strict=True)
        ]
    frame = _frame(backbone, tokenizer, prompts, responses)
    return pd.concat([frame, pd.DataFrame(scores)], axis=1)


def best_of(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    seed: int,
    n: int,
    reward: Callable[[pd.DataFrame], pd.Series],
) -> pd.DataFrame:
    """Sample n continuations for every one that `sample` would return, and keep the one with the highest reward.

    Args:
        reward: returns the reward of each row of a frame with the columns prompt_id to finished of `sample`.

    Returns:
        The columns of `sample`. `kl` is `best_of_kl(n)`; `entropy` is that of the sampled policy at the kept continuations.
    """
    responses = _generate(backbone, tokenizer, prompts, config.model_copy(update={"samples": config.samples * n}), seed)
    frame = _frame(backbone, tokenizer, prompts, responses)
    kept = reward(frame).to_numpy().reshape(-1, n).argmax(1) + n * np.arange(len(frame) // n)  # the first of equals
    scores = pd.DataFrame(_score(backbone, prompts, [responses[i] for i in kept])).assign(kl=best_of_kl(n))
    frame = frame.iloc[kept].reset_index(drop=True).assign(sample=np.arange(len(kept)) % config.samples)
    return pd.concat([frame, scores], axis=1)


def best_of_kl(n: int) -> float:
    """Return log n - (n - 1) / n in nats: the largest KL of the best of n samples from the policy that is sampled.

    It is the KL itself where no two samples have one reward, and more than the KL where samples tie.

    Source: Beirami et al., arXiv 2401.01879.

    Example:
        >>> round(best_of_kl(4), 4)
        0.6363
    """
    return math.log(n) - (n - 1) / n


def continuations(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    own: Draw,
    engine: Engine | None = None,
    others: Sequence[Draw] = (),
) -> pd.DataFrame:
    """Sample continuations as `sample` does, without statistics of the reference. Temperature 0 is greedy.

    Args:
        own: what is returned.
        engine: draws instead of the backbone.
        others: models whose continuations are wanted next: an engine may draw them at the same time, into their folders.

    Returns:
        Columns prompt_id to finished of `sample`, and entropy (nats, mean over tokens, of pi at temperature 1).
    """
    check_sampled(backbone, prompts, config)
    ends = eos_ids(backbone.causal_lm.generation_config, tokenizer)
    responses = draw(engine or Local(backbone, config.batch_size), [own, *others], prompts, config, ends)[0]
    frame = _frame(backbone, tokenizer, prompts, responses)
    return frame.assign(entropy=[score["entropy"] for score in _score(backbone, prompts, responses, reference=False)])


def _generate(backbone, tokenizer, prompts, config, seed, folder: Path | None = None) -> list[list[int]]:
    """Return ids of `config.samples` responses per prompt by the backbone, in order. `folder` keeps batches."""
    check_sampled(backbone, prompts, config)
    ends = eos_ids(backbone.causal_lm.generation_config, tokenizer)
    return draw(Local(backbone, config.batch_size), [Draw(seed, folder=folder)], prompts, config, ends)[0]


def answers(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    seed: int,
    folder: Path | None,
) -> pd.DataFrame:
    """Sample continuations with their token ids, of which training pairs are made.

    Args:
        folder: folder that keeps samples batch by batch, so that no process draws them again; None keeps none.

    Returns:
        Columns prompt_id to finished of `sample`, and ids (list of token ids, EOS included).
    """
    responses = _generate(backbone, tokenizer, prompts, config, seed, folder)
    return _frame(backbone, tokenizer, prompts, responses).assign(ids=pd.Series(responses, dtype=object))


def log_probs(
    backbone: Backbone, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]], statistic: str = "logps"
) -> list[float]:
    """Return the log-prob (nats) of each response under the policy, equally many responses per prompt, in their order.

    Args:
        statistic: the log-prob of a token.
    """
    samples = len(responses) // len(prompts)
    groups = [(prompt.ids, responses[i * samples : (i + 1) * samples]) for i, prompt in enumerate(prompts)]
    order = sorted(range(len(groups)), key=lambda i: (len(groups[i][0]) + max(map(len, groups[i][1])), i))
    found = [0.0] * len(responses)

    def measure(rows: Sequence[int]) -> list[None]:
        batch = collate_groups([groups[i] for i in rows], packed=backbone.packed)
        numbers = [i * samples + k for k in range(samples) for i in rows]  # in the batch's order
        values = backbone.measure(batch, (statistic,))[statistic].cpu().double()
        for n, own in zip(numbers, values.split([len(responses[n]) for n in numbers]), strict=True):
            found[n] = own.sum().item()
        return []

    Passes(max(1, PASS_SEQUENCES // samples), "scoring of answers", "prompts at a time", LOWER_SCORED).over(
        order, measure
    )
    return found


def _frame(backbone, tokenizer, prompts, responses) -> pd.DataFrame:
    samples, eos = len(responses) // len(prompts), eos_ids(backbone.causal_lm.generation_config, tokenizer)
    rows = []
    for number, response in enumerate(responses):
        prompt_id, index = divmod(number, samples)
        text = tokenizer.decode(response, skip_special_tokens=True)
        row = {"prompt_id": prompt_id, "sample": index, "prompt": prompts[prompt_id].text, "text": text}
        rows.append(row | {"tokens": len(response), "finished": response[-1] in eos})
    return pd.DataFrame(rows)


def draw(
    engine: Engine, draws: Sequence[Draw], prompts: Sequence[Prompt], config: EvaluationConfig, ends: Sequence[int]
) -> list[list[list[int]]]:
    """Return for each of `draws` the ids of `config.samples` responses per prompt, in order, with EOS if it occurred.

    All draw the same prompts in the same batches, so that an engine can compute a batch of all of them at once.
    """
    numbers = [(i, k) for i in range(len(prompts)) for k in range(config.samples)]
    order = sorted(range(len(numbers)), key=lambda n: (len(prompts[numbers[n][0]].ids), n))  # little padding
    sampling = Sampling(config.samples, config.temperature, config.top_p, config.max_new_tokens)
    responses: list[list[list[int]]] = [[[] for _ in numbers] for _ in draws]
    for start in range(0, len(order), engine.at_a_time):
        rows = order[start : start + engine.at_a_time]
        kept = [one.folder / f"{start}.json" if one.folder else None for one in draws]
        found = [store.read_json(file) if file else None for file in kept]
        lacking = [place for place, drawn in enumerate(found) if drawn is None]
        requests = [
            Request(prompts[i].ids, noise_key(draws[place].seed, i, k), draws[place].adapter)
            for place in lacking
            for i, k in (numbers[n] for n in rows)
        ]
        drawn = engine.draw(requests, sampling, ends) if requests else []
        for part, place in enumerate(lacking):
            found[place] = drawn[part * len(rows) : (part + 1) * len(rows)]
            if file := kept[place]:
                store.write_json(file, found[place])
        for own, batch in zip(responses, found, strict=True):
            for n, response in zip(rows, batch or (), strict=True):
                own[n] = response
    return responses


def _score(
    backbone: Backbone, prompts: Sequence[Prompt], responses: Sequence[list[int]], *, reference: bool = True
) -> list[dict[str, float]]:
    samples = len(responses) // len(prompts)
    groups = [(prompt.ids, responses[i * samples : (i + 1) * samples]) for i, prompt in enumerate(prompts)]
    order = sorted(range(len(groups)), key=lambda i: (len(groups[i][0]) + max(map(len, groups[i][1])), i))
    scores: list[dict[str, float]] = [{}] * len(responses)

    def score(rows: Sequence[int]) -> list[None]:
        batch = collate_groups([groups[i] for i in rows], packed=backbone.packed)
        numbers = [i * samples + k for k in range(samples) for i in rows]  # in the batch's order
        lengths = [len(responses[n]) for n in numbers]
        if not reference:
            entropies = backbone.measure(batch, ("entropy",))["entropy"].cpu().double().split(lengths)
            for n, entropy in zip(numbers, entropies, strict=True):
                scores[n] = {"entropy": entropy.mean().item()}
            return []
        with backbone.holding(backbone.reference):
            theirs = backbone.measure(batch, ("logps",), hidden=True)
        policy = backbone.measure(replace(batch, ref_hidden=theirs["hidden"]), ("kl_pi_ref", "entropy"))
        columns = (theirs["logps"], policy["kl_pi_ref"], policy["entropy"])
        for n, logps, kl, entropy in zip(numbers, *(c.cpu().double().split(lengths) for c in columns), strict=True):
            scores[n] = {"kl": kl.sum().item(), "entropy": entropy.mean().item(), "ref_nll": -logps.mean().item()}
        return []

    Passes(max(1, PASS_SEQUENCES // samples), "scoring of samples", "prompts at a time", LOWER_SCORED).over(
        order, score
    )
    return scores


def eos_ids(generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the tokens that end a response: the tokenizer's and those of the model's generation settings."""
    of_model = generation.eos_token_id
    ids = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return list(dict.fromkeys(i for i in ids if i is not None))


def check_sampled(backbone: Backbone, prompts: Sequence[Prompt], config: EvaluationConfig) -> None:
    """Refuse continuations beyond the positions that the model has learned.

    Raises:
        ModelError: a continuation may be too long; the message names the remedy.
    """
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    what = f"A prompt of {longest} tokens with max_new_tokens={config.max_new_tokens}"
    check_length(backbone.causal_lm, longest + config.max_new_tokens, what, "lower max_new_tokens, or data.max_length")
