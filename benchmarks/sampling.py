"""Seconds of sampling several LoRA adapters of one base, one by one and together, in turn, with the same noise.

    python benchmarks/sampling.py --model pocket

The adapters are random. One by one, as plo samples trained cells by default where they cannot share: each is loaded, and
its continuations are drawn `--batch-size` at a time. Together: each forward pass has equally many rows of every adapter, as many
as `plo.subjects.engines.local` allows. Medians over `--rounds`, after one that is not counted.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Ids = list[list[list[int]]]  # of each adapter, of each sample
Ways = tuple[Callable[[], Ids], Callable[[], Ids]]


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    from plo.backbone.load import load_backbone
    from plo.config import EvaluationConfig, ModelConfig
    from plo.data import load_data
    from plo.subjects.sampling import eos_ids, held_out_prompts

    policy, tokenizer = load_backbone(ModelConfig(name=args.model, dtype=args.dtype))
    if args.model == "pocket":
        data = load_data("pocket", tokenizer=tokenizer, options={"pairs": 2 * args.prompts + 64})
    else:
        data = load_data("hh", args.data, tokenizer=tokenizer, limit=8 * args.prompts)
    short = [pair for pair in [*data.eval, *data.train] if len(pair.prompt_ids) <= args.longest]
    prompts = held_out_prompts(short, args.prompts)
    sizes = {"samples": args.samples, "max_new_tokens": args.tokens, "batch_size": args.batch_size}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        draws = saved(policy, args.adapters, Path(folder))
        ends = eos_ids(policy.causal_lm.generation_config, tokenizer)
        ways = with_transformers(policy, draws, prompts, EvaluationConfig(**sizes), ends)
        for found in measure(*ways, rounds=args.rounds):
            print(json.dumps({"model": args.model, "dtype": args.dtype, **sizes, **found}), file=sys.stderr, flush=True)
    print(json.dumps({"model": args.model, "dtype": args.dtype, "prompts": len(prompts), **sizes, **found}, indent=1))


def moved(policy: Any, seed: int) -> None:
    """Give the policy adapters that differ from the base."""
    policy.reset(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.policy.named_parameters():
            if "lora_B" in name:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter)


def saved(policy: Any, count: int, folder: Path) -> list[Any]:
    """Return what that many adapters draw, saved in a folder. The policy holds the last one."""
    from plo.subjects.engines import Adapter
    from plo.subjects.sampling import Draw

    draws = []
    for number in range(count):
        moved(policy, number)
        policy.save(folder / str(number))
        draws.append(Draw(number, Adapter(str(number), folder / str(number))))
    return draws


def with_transformers(policy: Any, draws: list[Any], prompts: list[Any], config: Any, ends: list[int]) -> Ways:
    """Return two functions that sample, one by one and together."""
    from plo.subjects.engines import Local
    from plo.subjects.sampling import draw

    def one_by_one() -> Ids:
        found = []
        for one in draws:
            policy.restore(one.adapter.folder)
            found += draw(Local(policy, config.batch_size, held=one.adapter), [one], prompts, config, ends)
        return found

    def together() -> Ids:
        return draw(Local(policy, config.batch_size, held=draws[-1].adapter), draws, prompts, config, ends)

    return one_by_one, together


def with_engine(engine: Any, draws: list[Any], prompts: list[Any], config: Any, ends: list[int]) -> Ways:
    """Return the same for an engine that has the base and loads adapters by itself."""
    from plo.subjects.sampling import draw

    def one_by_one() -> Ids:
        return [ids for one in draws for ids in draw(engine, [one], prompts, config, ends)]

    return one_by_one, lambda: draw(engine, draws, prompts, config, ends)


def measure(
    one_by_one: Callable[[], Ids], together: Callable[[], Ids], seconds: float = float("inf"), rounds: int = 3
) -> Iterator[dict[str, Any]]:
    """Yield the medians so far after each round, until the rounds are done or the time is over."""
    until = time.monotonic() + seconds
    took: dict[str, list[tuple[float, float]]] = {"one_by_one": [], "together": []}
    for number in range(rounds + 1):
        ways = {"one_by_one": one_by_one, "together": together}
        found: dict[str, Ids] = {}
        for name in took if number % 2 else reversed(took):
            processor = time.process_time()
            wall, found[name] = timed(ways[name])
            took[name].append((wall, time.process_time() - processor))
        pairs = [zip(*each, strict=True) for each in zip(found["one_by_one"], found["together"], strict=True)]
        same = [alone == shared for each in pairs for alone, shared in each]
        counted = {name: values[1:] or values for name, values in took.items()}  # the first round allocates and loads
        yield {
            "adapters": len(found["together"]), "sequences": len(same), "same_sequences": sum(same),
            "tokens": sum(len(ids) for own in found["together"] for ids in own), "rounds": len(took["together"]) - 1,
            **{f"{name}_seconds": statistics.median(wall for wall, _ in each) for name, each in counted.items()},
            **{f"{name}_processor_seconds": statistics.median(cpu for _, cpu in each) for name, each in counted.items()},
        }  # fmt: skip
        if time.monotonic() + 1.2 * sum(each[-1][0] for each in took.values()) > until:
            return


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, up to the end of what it started on the GPU, and its result."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def parsed() -> argparse.Namespace:
    data = Path(os.environ.get("PLO_DATA", Path(__file__).parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded (SmolLM2-135M), pocket, a folder or a hub name")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--data", type=Path, default=data / "hh" / "harmless-base_test.jsonl.gz", help="prompts, except for pocket"
    )
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--longest", type=int, default=128, help="tokens of a prompt, at most; except for pocket")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="of a sample, at most")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences at a time, one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
