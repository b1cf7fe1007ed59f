"""Gumbel noise of a continuation's tokens, so that similar policies draw equal tokens from equal seeds."""

import hashlib
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from plo.subjects.subject import Sampling

LIKELIEST = 256  # tokens with noise of their own at each position
REST, WITHIN_REST = -1, -2  # in place of a token's id: the category of all other tokens, and the draw among them


def noise_key(seed: int, prompt: int, sample: int) -> int:
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


class GumbelSampler(LogitsProcessor):
    """Draws each row's next token by Gumbel noise that belongs to the token, so that similar policies draw equal tokens.

        argmax over i of log p_i + G_i,    G_i = -log(-log u_i)

    i runs over the `LIKELIEST` tokens and one more category, the rest, with the rest's whole probability; if that wins, a
    further uniform number draws a token of the rest by the inverse of its cumulative distribution. So the draw is exact.

    Args:
        keys: (rows,) int64, `noise_key` of each continuation.

    Source: Gumbel-max: Maddison et al. 2014 (arXiv:1411.0030).
    """

    def __init__(self, keys: torch.Tensor, prompt_length: int, sampling: Sampling):
        self.keys, self.prompt_length, self.greedy = keys, prompt_length, sampling.temperature == 0
        self.warpers: Any = LogitsProcessorList()
        if sampling.temperature not in (0, 1):
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

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
