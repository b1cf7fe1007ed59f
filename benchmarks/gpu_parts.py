"""The parts of `gpu.py`: generators that yield what they have measured so far."""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("PLO_HOME", tempfile.mkdtemp(prefix="plo-gpu-"))  # nothing is read from or left in the user's
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from sampling import timed
from torch import Tensor

Found = Iterator[dict[str, Any]]
SHAPES = {
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, tie_word_embeddings=True),
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, tie_word_embeddings=False),
    "toy": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, tie_word_embeddings=True),
}
HEADS = {"1b": (32, 8), "8b": (32, 8), "toy": (4, 2)}
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16 products per second, as the vendor gives them
BATCH, BETA, STEPS = 8, 0.1, 12
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def vocabulary(toy: bool) -> int:
    return 120 if toy else 128_256


def model(shape: str, dtype: torch.dtype, toy: bool) -> Any:
    """Return a Llama with random weights on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = "toy" if toy else shape
    heads, shared = HEADS[shape]
    config = LlamaConfig(
        **SHAPES[shape], vocab_size=vocabulary(toy), num_attention_heads=heads, num_key_value_heads=shared,
        max_position_embeddings=2048, eos_token_id=1, bos_token_id=2, pad_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with DEVICE:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def backbone(shape: str, peft: str, toy: bool, longest: int) -> Any:
    """Return plo's backbone of a random model, as `load_backbone` makes that of a saved one."""
    import plo.backbone.model
    import plo.backbone.trainable
    from plo.backbone.packing import use_if_agreed
    from plo.config import ModelConfig

    # Hashing 8B weights, and writing their float32 values to disk, would take a minute of the eight. The reference is
    # measured before any step, from the weights that are there.
    plo.backbone.trainable.model_identity = lambda model: "random"
    plo.backbone.model.OnDisk = lambda tensors: {}
    weights = model(shape, torch.bfloat16 if peft == "lora" else torch.float32, toy)
    made = plo.backbone.model.Backbone(weights, ModelConfig(name=shape, peft=peft), torch.bfloat16, device=DEVICE)
    made.longest = longest
    if why := use_if_agreed(made, longest):
        raise RuntimeError(f"pairs are not packed: {why}")
    return made


def pairs(count: int, toy: bool) -> list[Any]:
    """Return pairs of random tokens: about 200 of a prompt and 200 of a response, spread as chat data are; at most 1024."""
    from plo.data import Pair

    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        lengths = torch.exp(5.1 + 0.6 * torch.randn(3, generator=generator)).clamp(8, 512).long().tolist()
        lengths = [max(2, length // 40) for length in lengths] if toy else lengths
        ids = [torch.randint(3, vocabulary(toy), (n,), generator=generator).tolist() for n in lengths]
        made.append(Pair(*map(tuple, ids), prompt=str(number), where=str(number), columns={}))  # type: ignore[misc]
    return made


def peak() -> tuple[float, bool]:
    """Return the device's bfloat16 products per second, and whether they are the vendor's figure or were measured."""
    name = torch.cuda.get_device_name() if CUDA else ""
    if known := next((rate for part, rate in PEAK.items() if part in name), None):
        return known, True
    size = 8192 if CUDA else 256
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    return 2 * size**3 / min(timed(lambda: a @ a)[0] for _ in range(5)), False


def packed(shape: str, toy: bool, seconds: float) -> Found:
    """Compare margins of 256 pairs in bfloat16: packed with padded, and padded with padded at another batch size.

    Equality in bfloat16 is statistical: the mean difference is within 2 standard errors of 0, and the spread at most 1.2
    times that of the padded path against itself.
    """
    from sampling import moved

    from plo.backbone.batch import collate

    policy, data = backbone(shape, "lora", toy, longest=1024), pairs(16 if toy else 256, toy)
    moved(policy, 1)

    def margins(pack: bool, size: int) -> Tensor:
        policy.use_packed(pack)
        found = []
        for start in range(0, len(data), size):
            batch = collate(data[start : start + size], packed=pack)
            sums = [part.sum() for part in policy.measure(batch, ("logps",))["logps"].double().split(batch.lengths)]
            half = len(sums) // 2
            found += [c - r for c, r in zip(sums[:half], sums[half:], strict=True)]
        return torch.stack(found).cpu()

    ours, padded, other = margins(True, 8), margins(False, 8), margins(False, 4)
    off, spread = ours - padded, (other - padded).std().item()
    error = off.std().item() / len(data) ** 0.5
    yield {
        "pairs": len(data), "mean_difference_nats": off.mean().item(), "standard_error": error, "spread_packed": off.std().item(),
        "spread_padded": spread, "equal": abs(off.mean().item()) <= 2 * error + 1e-12 and off.std().item() <= 1.2 * spread + 1e-12,
    }  # fmt: skip


def head(shape: str, toy: bool, seconds: float) -> Found:
    """Compare the chunked LM head with whole logits in float32: log-probs, gradients, seconds and memory."""
    from plo.backbone.memory import peak_memory_gb, reset_peak_memory
    from plo.backbone.token_statistics import token_statistics

    tokens, width, words = (
        (64, 32, vocabulary(True)) if toy else (8192, SHAPES[shape]["hidden_size"], vocabulary(False))
    )
    torch.manual_seed(0)
    states = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(words, width, device=DEVICE, dtype=torch.bfloat16) / width**0.5).requires_grad_()
    targets = torch.randint(words, (tokens,), device=DEVICE)

    def whole() -> Tensor:
        return (states @ weight.t()).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    def chunked() -> Tensor:
        linear = lambda x: x @ weight.t()  # noqa: E731
        return token_statistics(("logps",), states, targets, linear, vocabulary=words, frozen=False)["logps"]

    def step(call: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        values = call()
        return values.detach(), *torch.autograd.grad(values.mean(), (states, weight))

    found: dict[str, Any] = {"tokens": tokens, "vocabulary": words}
    each = []
    for name, call in (("whole", whole), ("chunked", chunked)):
        step(call)
        reset_peak_memory()
        took, result = timed(partial(step, call))
        each.append([part.float() for part in result])
        yield (found := found | {f"{name}_seconds": took, f"{name}_peak_gb": peak_memory_gb()})
    differences = [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*each, strict=True)]
    names = ("log_probs", "gradient_of_states", "gradient_of_weight")
    yield found | {f"largest_relative_difference_{n}": d for n, d in zip(names, differences, strict=True)}


def train(shape: str, peft: str, system: str, toy: bool, seconds: float, optimizer: str = "adamw_torch_fused") -> Found:
    """Measure steps of one system on the same pairs. MFU counts the matrix products that the method needs, for both alike.

    The method needs every prompt once, the LM head on responses, and the reference's pass. plo makes that pass once a pair
    before the training, and TRL in every step: both are in `seconds_per_step`.
    """
    from plo.backbone.memory import peak_memory_gb, reset_peak_memory

    until = time.monotonic() + seconds
    data = pairs(BATCH * (2 if toy else STEPS), toy)
    with tempfile.TemporaryDirectory() as folder:
        run, reference, causal_lm = {"plo": _plo, "trl": _trl}[system](shape, peft, toy, data, Path(folder), optimizer)
        flop = _flop(causal_lm, data, peft) * BATCH / len(data)
        tokens = sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in data) * BATCH / len(data)
        rate, known = peak()
        reset_peak_memory()
        steps, losses = [], list[float]()
        for took, loss in run(until):
            steps.append(took)
            losses.append(loss)
        if not steps:
            raise RuntimeError("no step was made in time")
        whole = statistics.median(steps[2:] or steps) + reference  # the first ones allocate
        yield {
            "pairs_per_step": BATCH, "optimizer": optimizer, "steps": len(steps), "reference_seconds_per_step": reference,
            "seconds_per_step": whole, "tokens_per_second": tokens / whole, "mfu": flop / whole / rate,
            "peak_flops": rate, "peak_is_the_vendors": known, "peak_memory_gb": peak_memory_gb(), "first_loss": losses[0],
            "last_loss": losses[-1], "all_seconds": steps,
        }  # fmt: skip


def _flop(causal_lm: Any, data: list[Any], peft: str) -> float:
    head = causal_lm.get_output_embeddings().weight.numel()
    layers = (
        module for name, module in causal_lm.named_modules() if name.endswith("_proj") and hasattr(module, "weight")
    )
    body = sum(module.weight.numel() for module in layers)
    tokens = sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in data)
    responses = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in data)
    passes = 1 + 1 + (1 if peft == "lora" else 2)  # reference, forward, backward (to inputs, and to weights)
    return 2.0 * passes * (body * tokens + head * responses)


class Enough(Exception):
    """Ends a training before it would write a checkpoint."""


def _steps(trainer_of: Callable[[Any], Any], until: float) -> list[tuple[float, float]]:
    """Return seconds and loss of each step until all are made or the time is over."""
    from transformers import TrainerCallback

    found: list[tuple[float, float]] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *arguments, **keywords):
            self.started = time.perf_counter()

        def on_log(self, args, state, control, logs=None, **keywords):
            if "loss" in (logs or {}):
                took = timed(lambda: None)[0] + time.perf_counter() - self.started
                found.append((took, float(logs["loss"])))
                if state.global_step >= state.max_steps or time.monotonic() + 2 * took > until:
                    raise Enough
                self.started = time.perf_counter()

    with contextlib.suppress(Enough):
        trainer_of(Watch()).train()
    return found


def _plo(shape: str, peft: str, toy: bool, data: list[Any], folder: Path, optimizer: str) -> tuple[Any, float, Any]:
    from plo.backbone.reference import ReferenceStore
    from plo.backbone.trainer import PreferenceTrainer
    from plo.config import TrainConfig
    from plo.losses import get_loss

    policy = backbone(shape, peft, toy, longest=1024)
    policy.reset(0, get_loss("dpo"))
    store = ReferenceStore(folder / "warm")
    store.get(policy, data[:BATCH])
    took, reference = timed(lambda: ReferenceStore(folder / "reference").get(policy, data))
    config = TrainConfig(lr=1e-5, batch_size=BATCH, warmup=0.0, optimizer=optimizer)
    trainer = lambda watch: PreferenceTrainer(policy, data, reference, config, seed=0, folder=folder, callbacks=[watch])  # noqa: E731
    return partial(_steps, trainer), took * BATCH / len(data), policy.causal_lm


def _trl(shape: str, peft: str, toy: bool, data: list[Any], folder: Path, optimizer: str) -> tuple[Any, float, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset, *arguments, **keywords):
            return dataset

    weights = model(shape, torch.bfloat16 if peft == "lora" else torch.float32, toy)
    rows = [{k: list(getattr(p, k)) for k in ("prompt_ids", "chosen_ids", "rejected_ids")} for p in data]
    config = DPOConfig(
        output_dir=str(folder), beta=BETA, per_device_train_batch_size=BATCH, learning_rate=1e-5, num_train_epochs=1,
        max_length=1024, logging_steps=1, report_to=[], save_strategy="no", seed=0, bf16=True, use_cpu=not CUDA,
        disable_tqdm=True, optim=optimizer,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")

    def trainer(watch: Any) -> Any:
        return Tokenized(
            model=weights, ref_model=None if peft == "lora" else model(shape, torch.float32, toy), args=config,
            train_dataset=Dataset.from_list(rows), processing_class=tokenizer(toy), callbacks=[watch],
            peft_config=lora if peft == "lora" else None,
        )  # fmt: skip

    return partial(_steps, trainer), 0.0, weights


def tokenizer(toy: bool) -> Any:
    """Return a tokenizer with a word for each id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, vocabulary(toy))}
    words_of = Tokenizer(WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words_of, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def sampling(shape: str, toy: bool, seconds: float) -> Found:
    """Sample 8 adapters of one base by transformers, one by one and together in turn, with the same noise."""
    from sampling import measure, saved, with_transformers

    policy = backbone(shape, "lora", toy, longest=1024)
    with tempfile.TemporaryDirectory() as folder:
        draws = saved(policy, 8, Path(folder))
        yield from measure(*with_transformers(policy, draws, *_sampled(toy)), seconds)


def vllm(shape: str, toy: bool, seconds: float) -> Found:
    """Sample the same by one instance of vLLM, if it is installed."""
    from sampling import measure, saved, with_engine

    from plo.subjects.engines import Vllm
    from plo.subjects.engines.vllm_engine import check_installed

    check_installed()
    policy = backbone(shape, "lora", toy, longest=1024)
    with tempfile.TemporaryDirectory() as folder:
        draws = saved(policy, 8, Path(folder))
        policy.policy.unload().save_pretrained(base := Path(folder) / "base")
        tokenizer(toy).save_pretrained(base)
        engine = Vllm(str(base), "bfloat16", 16, {"max_model_len": 1024})
        yield from measure(*with_engine(engine, draws, *_sampled(toy)), seconds)


def _sampled(toy: bool) -> tuple[list[Any], Any, list[int]]:
    """Return prompts, the settings of sampling, and the token that ends a sample, which random models hardly draw."""
    from plo.config import EvaluationConfig
    from plo.subjects.sampling import Prompt

    prompts = [Prompt(pair.prompt_ids, pair.prompt) for pair in pairs(4 if toy else 32, toy)]
    return prompts, EvaluationConfig(samples=1, max_new_tokens=4 if toy else 128, batch_size=32), [1]
