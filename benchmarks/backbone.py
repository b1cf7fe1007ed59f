"""plo's step against TRL's `DPOTrainer`: same rows, batches, dtype and threads, step by step in turn.

Three processes are started: plo, TRL as shipped, and TRL at its best (no gradient checkpointing, reference precomputed).
They hold still until told to take one step, so that each step of one is timed beside the same step of the others.

    python benchmarks/backbone.py --data hh --peft lora
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SYSTEMS = {
    "plo": "plo",
    "trl": "TRL as shipped",
    "trl_best": "TRL at its best (no checkpointing, reference precomputed)",
}
BATCH, MAX_LENGTH, BETA = 4, 512, 0.1
LR = {"lora": 5e-4, "full": 2e-5}
FILES = {"hh": "hh/harmless-base_test.jsonl.gz", "tldr": "tldr/comparisons.jsonl"}


def main() -> None:
    args = _arguments()
    if args.worker:
        return _worker(args)
    result = measure(args)
    print(json.dumps(result, indent=1) if args.json else table(result))


def measure(args: argparse.Namespace) -> dict:
    """Steps of all systems in turn; see `table` for what is reported."""
    names = args.systems.split(",")
    with tempfile.TemporaryDirectory() as folder:
        workers = {name: _Worker(name, args, Path(folder) / name) for name in names}
        set_up = {name: worker.step() for name, worker in workers.items()}  # one after the other
        seconds = {name: [] for name in names}
        losses = {name: [] for name in names}
        order = random.Random(0)
        for _ in range(set_up[names[0]]["steps"]):
            for name in order.sample(names, len(names)):
                step = workers[name].step()
                seconds[name].append(step["seconds"])
                losses[name].append(step["loss"])
        ends = {name: worker.read() for name, worker in workers.items()}
    tokens = set_up[names[0]]["tokens"]
    result = {"data": args.data, "peft": args.peft, "dtype": args.dtype, "tokens_per_step": tokens, "systems": {}}
    for name in names:
        median = statistics.median(seconds[name][1:])  # the first step allocates
        charged = median + set_up[name]["reference_seconds_per_step"]
        result["systems"][name] = {
            "step_seconds": median,
            "reference_seconds": set_up[name]["reference_seconds_per_step"],
            "seconds": charged,
            "tokens_per_second": tokens / charged,
            "peak_memory_gb": ends[name]["peak_memory_gb"],
            "losses": losses[name],
            "all_seconds": seconds[name],
        }
    return result


class _Worker:
    def __init__(self, name: str, args: argparse.Namespace, folder: Path):
        command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
        for key in ("data", "peft", "dtype", "rows", "epochs", "loss", "checkpointing", "threads", "attention"):
            command += [f"--{key}", str(getattr(args, key))]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.read()

    def step(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"{self.name} ended without a word: see above.")


def table(result: dict) -> str:
    return json.dumps(result, indent=1)


# A worker.


def _say(**content) -> None:
    print("@" + json.dumps(content), flush=True)


def _worker(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    from transformers import AutoTokenizer

    from plo.data import load_data
    from plo.embedded import embedded_model

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    root = Path(os.environ.get("PLO_DATA", Path(__file__).parents[2] / "shared" / "data"))
    data = load_data(
        args.data, root / FILES[args.data], tokenizer=tokenizer, limit=args.rows, eval_limit=1, max_length=MAX_LENGTH
    )
    _say(ready=True)
    sys.stdin.readline()
    trainer, reference_seconds = (_plo if args.worker == "plo" else _trl)(args, data.train)
    steps = args.epochs * args.rows // BATCH
    tokens = (
        sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in data.train) * BATCH / args.rows
    )
    _say(reference_seconds_per_step=reference_seconds * BATCH / args.rows, steps=steps, tokens=tokens)
    trainer.train()
    from plo.backbone.trainer import peak_memory_gb

    _say(peak_memory_gb=peak_memory_gb())


def _turnstile():
    from transformers import TrainerCallback

    from plo.backbone.trainer import reset_peak_memory

    class Turnstile(TrainerCallback):
        """Waits before each step, and tells its time and loss after it."""

        def on_train_begin(self, *args, **kwargs):
            reset_peak_memory()

        def on_step_begin(self, *args, **kwargs):
            sys.stdin.readline()
            self.started = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            self.seconds = time.perf_counter() - self.started

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                _say(seconds=self.seconds, loss=float(logs["loss"]))

    return Turnstile()


def _plo(args, pairs):
    from plo.backbone.model import load_backbone
    from plo.backbone.reference import ReferenceStore
    from plo.backbone.statistics import STATISTICS, needs_reference
    from plo.backbone.trainer import PreferenceTrainer
    from plo.config import ModelConfig, TrainConfig
    from plo.losses import get_loss

    backbone, _ = load_backbone(ModelConfig(peft=args.peft, dtype=args.dtype, attention=args.attention))
    loss = get_loss(args.loss)
    backbone.reset(0, loss)
    started = time.perf_counter()
    hidden = needs_reference([n for n in loss.needs if n in STATISTICS])
    reference = ReferenceStore(args.folder / "store").get(backbone, pairs, hidden=hidden)
    seconds = time.perf_counter() - started
    config = TrainConfig(lr=LR[args.peft], batch_size=BATCH, epochs=args.epochs, warmup=0.0)
    trainer = PreferenceTrainer(
        backbone, pairs, reference, config, seed=0, folder=args.folder, callbacks=[_turnstile()]
    )
    return trainer, seconds


def _trl(args, pairs):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from plo.embedded import embedded_model

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset  # tokenised already: to the same ids (tests/data/test_tokenize.py)

    best = args.worker == "trl_best"
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    rows = [
        {"prompt_ids": list(p.prompt_ids), "chosen_ids": list(p.chosen_ids), "rejected_ids": list(p.rejected_ids)}
        for p in pairs
    ]
    bf16 = args.dtype == "bfloat16"
    dtype = torch.bfloat16 if bf16 and args.peft == "lora" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=dtype, attn_implementation=None if args.attention == "auto" else args.attention)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    config = DPOConfig(
        output_dir=str(args.folder), beta=BETA, per_device_train_batch_size=BATCH, learning_rate=LR[args.peft],
        num_train_epochs=args.epochs, lr_scheduler_type="cosine", max_length=MAX_LENGTH, logging_steps=1, report_to=[],
        save_strategy="no", seed=0, data_seed=0, bf16=bf16, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        **({"gradient_checkpointing": False, "precompute_ref_log_probs": True} if best else {}),
        **({} if not args.checkpointing else {"gradient_checkpointing": args.checkpointing == "on"}),
    )  # fmt: skip
    dataset = Dataset.from_list(rows)
    started = time.perf_counter()
    trainer = Trainer(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer,
        peft_config=lora if args.peft == "lora" else None, callbacks=[_turnstile()],
    )  # fmt: skip
    return trainer, (time.perf_counter() - started if best else 0.0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(FILES), default="hh")
    parser.add_argument("--peft", choices=["lora", "full"], default="lora")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--loss", default="dpo")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--checkpointing", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--systems", default="plo,trl,trl_best")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
