"""plo's training step compared with TRL's `DPOTrainer`: same rows, batches, dtype and threads, step by step in turn.

    python benchmarks/backbone.py --data hh --peft lora

compares plo with TRL as shipped, then with TRL at its best (no gradient checkpointing, reference precomputed);
`--against plo:tdpo2` compares it with plo itself and another loss. Both systems of a pair wait until they may take one
step, so that each step of one is timed next to the same step of the other. The pass over the reference is charged to the
system that makes it, once per pair of rows, as in one epoch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

BASELINES = {"trl": "TRL as shipped", "trl_best": "TRL at its best"}
BATCH, MAX_LENGTH, BETA = 4, 512, 0.1
LR = {"lora": 1e-3, "full": 3e-5}  # at which the loss falls by .2 and more
FILES = {"hh": "hh/harmless-base_test.jsonl.gz", "tldr": "tldr/comparisons.jsonl"}
PASSED_ON = ("data", "peft", "dtype", "rows", "epochs", "loss", "checkpointing", "threads", "plain", "seed")


def data_file(name: str) -> Path:
    return Path(os.environ.get("PLO_DATA", Path(__file__).parents[2] / "shared" / "data")) / FILES[name]


def main() -> None:
    args = arguments()
    if args.worker:
        return worker(args)
    rounds = [measure(args, ["plo", other]) for other in args.against.split(",")]
    if args.record:
        record(args.record, rounds)
    if args.json:
        print(json.dumps(rounds, indent=1))
    else:
        for result in rounds:
            print(table(result), end="\n\n")


def measure(args: argparse.Namespace, names: list[str]) -> dict:
    """Time steps of the named systems in turn, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        workers = {name: Worker(name, args, Path(folder) / str(i)) for i, name in enumerate(names)}
        set_up = {name: worker.go() for name, worker in workers.items()}  # one after the other
        steps = {name: [] for name in names}
        for number in range(args.epochs * args.rows // BATCH):
            for name in names if number % 2 else reversed(names):
                steps[name].append(workers[name].go())
        ends = {name: worker.go() for name, worker in workers.items()}
    result = {**{name: getattr(args, name) for name in PASSED_ON}, "batch": BATCH, "max_length": MAX_LENGTH}
    result |= {"tflops_of_a_matrix_product": matmul_tflops(args), "tokens_per_step": set_up["plo"]["tokens"]}
    for name in names:
        seconds = [step["seconds"] for step in steps[name]]
        reference = set_up[name]["reference_seconds"]
        median, mean = statistics.median(seconds[1:]), statistics.mean(seconds[1:]) + reference  # the first allocates
        result[name] = {
            "step_seconds": median,
            "reference_seconds": reference,
            "seconds": median + reference,
            "mean_seconds": mean,
            "tokens_per_second": set_up[name]["tokens"] / mean,
            "peak_memory_gb": ends[name]["peak_memory_gb"],
            "useful_tflops": set_up["plo"]["tflop"] / mean,
            "losses": [step["loss"] for step in steps[name]],
            "all_seconds": seconds,
        }
    ours, theirs = (result[name] for name in names)
    result["against"] = names[1]
    result["ratio"] = theirs["seconds"] / ours["seconds"]
    result["mean_ratio"] = theirs["mean_seconds"] / ours["mean_seconds"]  # steps are of unlike length: medians jump
    result["step_ratio"] = theirs["step_seconds"] / ours["step_seconds"]
    result["memory_ratio"] = ours["peak_memory_gb"] / theirs["peak_memory_gb"]
    result["largest_loss_difference"] = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    return result


def record(file: Path, rounds: list[dict]) -> None:
    """Write how long other losses' steps take, as multiples of `--loss`'s, to the file that `plo docs` reads."""
    import torch
    import transformers

    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    hardware = f"{machine}; torch {torch.__version__}, transformers {transformers.__version__}"
    command = f"python {' '.join(a for a in sys.argv if str(file) not in a)}".replace(" --record", "")
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for result in rounds:
        loss, peft, ratio = result["against"].removeprefix("plo:"), result["peft"], round(result["step_ratio"], 3)
        known = [each for each in known if (each["loss"], each["peft"]) != (loss, peft)]
        known.append({"loss": loss, "peft": peft, "ratio": ratio, "command": command, "hardware": hardware})
    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def table(result: dict) -> str:
    other = result["against"]
    lines = [
        f"{result['data']}, {result['peft']}, {result['dtype']}, {result['loss']}, batch {BATCH}, max length {MAX_LENGTH}, "
        f"{result['tokens_per_step']:.0f} tokens a step",
        "| | s/step | + reference | tokens/s | peak GB | share of the machine's matrix products |",
        "|---|---|---|---|---|---|",
    ]
    for key in ("plo", other):
        r = result[key]
        share = r["useful_tflops"] / result["tflops_of_a_matrix_product"]
        lines.append(
            f"| {BASELINES.get(key, key)} | {r['step_seconds']:.2f} | {r['reference_seconds']:.2f} "
            f"| {r['tokens_per_second']:.0f} | {r['peak_memory_gb']:.2f} | {share:.1%} |"
        )
    losses = result["plo"]["losses"]
    lines.append(
        f"plo is {result['ratio']:.2f} times as fast (by means {result['mean_ratio']:.2f}, steps alone "
        f"{result['step_ratio']:.2f}) with {result['memory_ratio']:.2f} of the memory; its losses fall from {losses[0]:.3f} to {min(losses):.3f} and "
        f"differ by at most {result['largest_loss_difference']:.3f}."
    )
    return "\n".join(lines)


class Worker:
    """A process that runs one of the systems, one step at a time."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path):
        command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
        for key in PASSED_ON:
            command += [f"--{key}", str(getattr(args, key))]
        self.name = name
        log = open(folder.with_suffix(".log"), "w")  # noqa: SIM115
        self.log = log.name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def go(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"{self.name} ended early:\n{Path(self.log).read_text()[-3000:]}")


def matmul_tflops(args: argparse.Namespace, size: int = 2048) -> float:
    """Return the machine's own speed, the best of ten products of square matrices."""
    import torch

    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device, dtype=getattr(torch, args.dtype))
    return 2 * size**3 / min(timeit.repeat(lambda: (a @ a).sum().item(), repeat=10, number=1)) / 1e12


# Inside a worker.


def say(**content) -> None:
    print("@" + json.dumps(content), flush=True)


def worker(args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoTokenizer

    from plo.backbone.memory import peak_memory_gb
    from plo.data import load_data
    from plo.embedded import embedded_model

    torch.set_num_threads(args.threads)
    args.worker, _, other_loss = args.worker.partition(":")
    args.loss = other_loss or args.loss
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    pairs = load_data(
        args.data, data_file(args.data), tokenizer=tokenizer, limit=args.rows, eval_limit=1, max_length=MAX_LENGTH
    ).train
    sys.stdin.readline()
    trainer, reference_seconds = (_plo if args.worker == "plo" else _trl)(args, pairs)
    tokens = sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    say(
        reference_seconds=reference_seconds * BATCH / args.rows,
        tokens=tokens * BATCH / args.rows,
        tflop=_needed_tflop(args, trainer.model, pairs) * BATCH / args.rows,
    )
    trainer.train()
    say(peak_memory_gb=peak_memory_gb())


def _needed_tflop(args, model, pairs) -> float:
    """Count the matrix products that the method itself needs: prompts once, LM head on responses, the reference's pass."""
    causal_lm = getattr(model, "causal_lm", model)
    head = causal_lm.get_output_embeddings().weight.numel()
    body = sum(m.weight.numel() for n, m in causal_lm.named_modules() if n.endswith("_proj") and hasattr(m, "weight"))
    tokens = sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    responses = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    passes = 1 + 1 + (1 if args.peft == "lora" else 2)  # reference, forward, backward (to inputs, and to weights)
    return 2 * passes * (body * tokens + head * responses) / 1e12


def _turnstile():
    from transformers import TrainerCallback

    from plo.backbone.memory import reset_peak_memory

    class Turnstile(TrainerCallback):
        """Waits before each step, and afterwards prints its time (data loading and logging included) and its loss."""

        def on_train_begin(self, *args, **kwargs):
            reset_peak_memory()
            self.wait()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                say(seconds=time.perf_counter() - self.started, loss=float(logs["loss"]))
                self.wait()  # after the last one too: what ends a training would disturb the other's step

        def wait(self):
            sys.stdin.readline()
            self.started = time.perf_counter()

    return Turnstile()


def _plo(args, pairs):
    from plo.backbone.load import load_backbone
    from plo.backbone.reference import ReferenceStore
    from plo.backbone.token_statistics import needs_reference
    from plo.backbone.trainer import PreferenceTrainer
    from plo.config import ModelConfig, TrainConfig
    from plo.losses import get_loss

    backbone, _ = load_backbone(ModelConfig(peft=args.peft, dtype=args.dtype, packed=not args.plain))
    loss = get_loss(args.loss)
    backbone.reset(args.seed, loss)
    started = time.perf_counter()
    hidden = needs_reference(loss.needs)
    reference = ReferenceStore(args.folder / "store").get(backbone, pairs, hidden=hidden)
    seconds = time.perf_counter() - started
    config = TrainConfig(
        lr=LR[args.peft], batch_size=BATCH, epochs=args.epochs, warmup=0.0,
        gradient_checkpointing=args.checkpointing or "auto",
    )  # fmt: skip
    trainer = PreferenceTrainer(
        backbone, pairs, reference, config, seed=args.seed, folder=args.folder, callbacks=[_turnstile()]
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

        def _precompute_ref_logps(self, *args, **kwargs):
            started = time.perf_counter()
            out = super()._precompute_ref_logps(*args, **kwargs)
            self.reference_seconds = time.perf_counter() - started
            return out

    best, bf16 = args.worker == "trl_best", args.dtype == "bfloat16"
    # As in plo: the frozen base of LoRA in the compute dtype, float32 weights under autocast in full fine-tuning.
    dtype = torch.bfloat16 if bf16 and args.peft == "lora" else torch.float32
    checkpointing = args.checkpointing == "on" if args.checkpointing else not best
    config = DPOConfig(
        output_dir=str(args.folder), beta=BETA, loss_type={"dpo": "sigmoid"}.get(args.loss, args.loss),
        per_device_train_batch_size=BATCH, learning_rate=LR[args.peft], num_train_epochs=args.epochs,
        lr_scheduler_type="cosine", max_length=MAX_LENGTH, logging_steps=1, report_to=[], save_strategy="no", seed=args.seed,
        data_seed=args.seed, bf16=bf16, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        gradient_checkpointing=checkpointing, precompute_ref_log_probs=best,
    )  # fmt: skip
    rows = [
        {"prompt_ids": list(p.prompt_ids), "chosen_ids": list(p.chosen_ids), "rejected_ids": list(p.rejected_ids)}
        for p in pairs
    ]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=dtype)
    trainer = Trainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(embedded_model()),
        peft_config=lora if args.peft == "lora" else None, callbacks=[_turnstile()],
    )  # fmt: skip
    return trainer, trainer.reference_seconds if best else 0.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(FILES), default="hh")
    parser.add_argument("--peft", choices=["lora", "full"], default="lora")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rows", type=int, default=32, help="training pairs, a multiple of 4")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--loss", default="dpo")
    parser.add_argument("--checkpointing", choices=["", "on", "off"], default="", help="'': each system's own setting")
    parser.add_argument("--plain", type=int, default=0, help="1: plo with padded rows, not packed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against", default="trl,trl_best", help="trl, trl_best, plo:<loss>; several with commas")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", type=Path, help="file of steps of other losses (plo/pages/measured.json) to update")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
