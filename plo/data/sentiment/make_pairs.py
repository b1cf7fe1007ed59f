"""Make `pairs.jsonl`: preferences for good sentiment, drawn from a Bradley-Terry model of a known reward.

    python -m plo.data.sentiment.make_pairs

The embedded model continues each opening, and the gold reward of a continuation is its VADER compound score
(-1 to 1). Rounding, and so the samples, differ from machine to machine: `pairs.jsonl` is shipped rather than
made again, so that its digest is the same everywhere. Five minutes on two cores.
"""

import argparse
import json
import math
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAIRS_PER_OPENING = 2
# Latin letters and the usual typography: what the model writes beyond them is noise at temperature 1.
READABLE = re.compile("[\n -~\u00a1-\u017f‘’“”–—…€]+")
OFFENSIVE = re.compile(
    r"fuck|shit|\bsex|slut|whore|\brap(e|es|ed|ing|ist)\b|porn|bitch|\bcunt|nigg|\bfag|suicid|nazi",
    re.IGNORECASE,
)


def openings(split: str) -> list[str]:
    """Return the openings of a split ("train" or "eval"), in the order of their file."""
    return (FOLDER / f"openings_{split}.txt").read_text(encoding="utf-8").splitlines()


def sample(prompts: list[str], *, per_prompt: int, max_new_tokens: int, seed: int) -> dict[str, list[str]]:
    """Sample continuations of each prompt from the embedded model: plain text, temperature 1, no top-k or top-p.

    A continuation is dropped if it is empty, unreadable or offensive, or if its text does not tokenise to the tokens
    that were sampled. So a prompt may have fewer than `per_prompt`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from plo.embedded import embedded_model

    folder = embedded_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    by_length = defaultdict(list)  # prompts of equal length share a batch, so that nothing is padded
    for prompt in prompts:
        by_length[len(tokenizer(prompt).input_ids)].append(prompt)
    torch.manual_seed(seed)
    samples = {prompt: [] for prompt in prompts}
    for length in sorted(by_length):
        group = by_length[length]
        for start in range(0, len(group), 16):
            batch = group[start : start + 16]
            outputs = model.generate(
                **tokenizer(batch, return_tensors="pt"),
                do_sample=True,
                temperature=1.0,
                top_k=0,  # transformers cuts to the 50 likeliest tokens by default
                top_p=1.0,
                num_return_sequences=per_prompt,
                max_new_tokens=max_new_tokens,
            )
            for i, tokens in enumerate(outputs.tolist()):
                prompt, end = batch[i // per_prompt], tokenizer.eos_token_id
                tokens = tokens[: tokens.index(end, length) if end in tokens[length:] else None]
                text = tokenizer.decode(tokens[length:])
                exact = special.isdisjoint(tokens) and tokenizer(prompt + text).input_ids == tokens
                if exact and text.strip() and READABLE.fullmatch(text) and not OFFENSIVE.search(text):
                    samples[prompt].append(text)
    return samples


def pair(samples: list[str], rewards: list[float], *, temperature: float, rng: random.Random) -> list[dict]:
    """Pair the k-th best sample with the k-th worst, for k = 1, 2, as rows without their prompt.

    Labels follow Bradley-Terry: P(a preferred to b) = sigmoid((r_a - r_b) / temperature). A pair of two equal
    texts is skipped.
    """
    order = sorted(range(len(samples)), key=lambda i: rewards[i])
    rows = []
    for k in range(min(PAIRS_PER_OPENING, len(order) // 2)):
        worst, best = order[k], order[-1 - k]
        if samples[best].strip() == samples[worst].strip():
            continue
        p_best = 1 / (1 + math.exp(-(rewards[best] - rewards[worst]) / temperature))
        chosen, rejected = (best, worst) if rng.random() < p_best else (worst, best)
        rows.append(
            {
                "chosen": samples[chosen],
                "rejected": samples[rejected],
                "chosen_reward": round(rewards[chosen], 4),
                "rejected_reward": round(rewards[rejected], 4),
            }
        )
    return rows


def main() -> None:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--temperature", type=float, default=0.25, help="temperature of the labels, in units of reward")
    parser.add_argument("--samples", type=int, default=8, help="samples per opening")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER / "pairs.jsonl")
    args = parser.parse_args()

    vader = SentimentIntensityAnalyzer()
    rng = random.Random(args.seed)
    rows, all_rewards = [], []
    for offset, split in enumerate(("train", "eval")):
        prompts = openings(split)
        samples = sample(prompts, per_prompt=args.samples, max_new_tokens=args.max_new_tokens, seed=args.seed + offset)
        for prompt in prompts:
            rewards = [vader.polarity_scores(text)["compound"] for text in samples[prompt]]
            all_rewards += rewards
            for row in pair(samples[prompt], rewards, temperature=args.temperature, rng=rng):
                texts = {"prompt": prompt, "chosen": row.pop("chosen"), "rejected": row.pop("rejected")}
                rows.append(texts | {"split": split} | row)
    with args.out.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    counts = {split: sum(row["split"] == split for row in rows) for split in ("train", "eval")}
    higher = sum(row["chosen_reward"] > row["rejected_reward"] for row in rows) / len(rows)
    mean = sum(all_rewards) / len(all_rewards)
    print(
        f"{args.out}: {counts['train']} training and {counts['eval']} evaluation pairs. The preferred "
        f"response has the higher reward in {higher:.1%}. Mean of {len(all_rewards)} samples: {mean:.3f}."
    )


if __name__ == "__main__":
    main()
