"""Sampling of continuations of held-out prompts, with statistics of policy and reference."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from plo import store
from plo.backbone.batch import collate_groups
from plo.backbone.limits import check_length
from plo.backbone.model import Backbone
from plo.backbone.out_of_memory import Passes
from plo.config import EvaluationConfig
from plo.data import Pair

PASS_SEQUENCES = 16  # sequences per scoring pass
VERSION = 2  # of the way a token is drawn; samples, cells and evaluations of another version are not mixed with these
LIKELIEST = 256  # tokens with noise of their own at each position
LOWER = "Lower evaluation.batch_size (--batch-size) or evaluation.max_new_tokens, or use a smaller model"
LOWER_SCORED = "Lower evaluation.samples or evaluation.max_new_tokens, or use a smaller model"
REST, WITHIN_REST = -1, -2  # in place of a token's id: the category of all other tokens, and the draw among them


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt: its token ids, as in training, and its text."""

    ids: tuple[int, ...]
    text: str


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
    seed: int,
    folder: Path,
) -> pd.DataFrame:
    """Sample continuations as `sample` does, without statistics of the reference. Temperature 0 is greedy.

    Args:
        folder: folder that keeps samples batch by batch, so that no process draws them again.

    Returns:
        Columns prompt_id to finished of `sample`, and entropy (nats, mean over tokens, of pi at temperature 1).
    """
    folder.mkdir(parents=True, exist_ok=True)
    responses = _generate(backbone, tokenizer, prompts, config, seed, folder)
    frame = _frame(backbone, tokenizer, prompts, responses)
    return frame.assign(entropy=[score["entropy"] for score in _score(backbone, prompts, responses, reference=False)])


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
    return _frame(backbone, tokenizer, prompts, responses).assign(ids=responses)


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


def _generate(backbone, tokenizer, prompts, config, seed, folder: Path | None = None) -> list[list[int]]:
    """Return ids of `config.samples` responses per prompt, in order, with EOS if it occurred. `folder` keeps batches."""
    check_sampled(backbone, prompts, config)
    eos = eos_ids(backbone.causal_lm.generation_config, tokenizer)
    generation = GenerationConfig(
        do_sample=False,  # `_Sampler` draws the token, and greedy decoding takes it
        max_new_tokens=config.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=eos[0],
    )
    numbers = [(i, k) for i in range(len(prompts)) for k in range(config.samples)]
    order = sorted(range(len(numbers)), key=lambda n: (len(prompts[numbers[n][0]].ids), n))  # little padding
    responses: list[list[int]] = [[] for _ in numbers]

    def draw(rows: Sequence[int]) -> list[list[int]]:
        ids = [prompts[numbers[n][0]].ids for n in rows]
        length = max(map(len, ids))
        padded = torch.tensor([[eos[0]] * (length - len(i)) + list(i) for i in ids])
        mask = torch.tensor([[0] * (length - len(i)) + [1] * len(i) for i in ids])
        keys = torch.tensor([_key(seed, *numbers[n]) for n in rows], device=backbone.device)
        sampler = LogitsProcessorList([_Sampler(keys, length, config)])
        out = backbone.generate(padded, mask, generation_config=generation, logits_processor=sampler)
        return [_cut_after_eos(response, eos) for response in out[:, length:].tolist()]

    passes = Passes(config.batch_size, "sampling", "sequences at a time", LOWER)
    for start in range(0, len(order), config.batch_size):
        rows = order[start : start + config.batch_size]
        kept = folder / f"{start}.json" if folder else None
        drawn = store.read_json(kept) if kept else None
        if drawn is None:
            drawn = passes.over(rows, draw)
            if kept:
                store.write_json(kept, drawn)
        for n, response in zip(rows, drawn, strict=True):
            responses[n] = response
    return responses


def _key(seed: int, prompt: int, sample: int) -> int:
    """Return the 64-bit key of one continuation's noise, equal for every policy, batch size and machine."""
    digest = hashlib.blake2b(f"{seed} {prompt} {sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """Return int64 of which every bit depends on all 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


def _uniform(keys: torch.Tensor, position: int, tokens: torch.Tensor) -> torch.Tensor:
    """Return uniform numbers (rows, n) in (0, 1) that depend on a row's key, the position and the token id alone."""
    rows = _mixed(keys + position)
    bits = _mixed(rows[:, None] + tokens)
    return (((bits >> 41) & 0x7FFFFF).float() + 0.5) / 2**23


class _Sampler(LogitsProcessor):
    """Draws each row's next token by Gumbel noise that belongs to the token, so that similar policies draw equal tokens.

        argmax over i of log p_i + G_i,    G_i = -log(-log u_i)

    i runs over the `LIKELIEST` tokens and one more category, the rest, with the rest's whole probability; if that wins, a
    further uniform number draws a token of the rest by the inverse of its cumulative distribution. So the draw is exact.

    Args:
        keys: (rows,) int64, `_key` of each continuation.

    Source: Gumbel-max: Maddison et al. 2014 (arXiv:1411.0030).
    """

    def __init__(self, keys: torch.Tensor, prompt_length: int, config: EvaluationConfig):
        self.keys, self.prompt_length, self.greedy = keys, prompt_length, config.temperature == 0
        self.warpers: Any = LogitsProcessorList()
        if config.temperature not in (0, 1):
            self.warpers.append(TemperatureLogitsWarper(config.temperature))
        if config.top_p < 1:
            self.warpers.append(TopPLogitsWarper(config.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.greedy:
            return scores
        logits, position = self.warpers(input_ids, scores.float()), input_ids.shape[1] - self.prompt_length
        values, tokens = logits.topk(min(LIKELIEST, logits.shape[-1]), sorted=False)
        total = logits.logsumexp(-1, keepdim=True)
        rest = total + (-torch.expm1(values.logsumexp(-1, keepdim=True) - total)).clamp(min=0).log()
        places = torch.cat([tokens, torch.full_like(tokens[:, :1], REST)], -1)
        noise = _uniform(self.keys, position, places).log_().neg_().log_()  # -G
        noisy = torch.cat([values, rest], -1) - noise
        token = tokens.gather(-1, noisy[:, :-1].argmax(-1, keepdim=True))
        if len(rows := (noisy.argmax(-1) == tokens.shape[-1]).nonzero()[:, 0]):
            others = (logits[rows] - total[rows]).exp_().scatter_(-1, tokens[rows], 0).cumsum(-1)
            at = _uniform(self.keys[rows], position, torch.full_like(token[rows], WITHIN_REST)) * others[:, -1:]
            within = torch.searchsorted(others, at, right=True).clamp(max=scores.shape[-1] - 1)
            token[rows] = torch.where(others[:, -1:] > 0, within, token[rows])  # a rest of rounding errors is empty
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


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


def _cut_after_eos(response: list[int], eos: Sequence[int]) -> list[int]:
    first = next((i for i, token in enumerate(response) if token in eos), len(response))
    return response[: first + 1]
