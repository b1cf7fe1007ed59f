"""A matrix of 4 losses x 2 seeds: one `plo compare`, and the same 8 runs one by one, timed as whole processes.

    python benchmarks/matrix.py

The single runs are TRL's `DPOTrainer` as shipped. A loss that TRL lacks (`--losses sft,dpo,ipo,tdpo2`) runs in a process of
plo that neither packs nor shares anything. plo's time includes the evaluation, MLflow's records and the cells `reference`,
which the single runs do not have. The embedded model is made beforehand, the reference's statistics within the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from backbone import BATCH, FILES, LR, MAX_LENGTH, data_file

from plo.embedded import embedded_model

TRL = {"sft": "sft", "dpo": "sigmoid", "ipo": "ipo", "hinge": "hinge"}  # loss: TRL's loss_type
SEEDS = (0, 1)


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        ours = plo(args, Path(folder))
        theirs = {
            f"{loss} seed {seed}": single_run(args, loss, seed, Path(folder)) for loss in args.losses for seed in SEEDS
        }
    total = sum(theirs.values())
    result = {"steps": args.rows * args.epochs // BATCH, "plo_seconds": ours, "seconds": theirs, "ratio": total / ours}
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"| {args.data}, {args.peft}, {result['steps']} steps of {BATCH} pairs each | seconds |\n|---|---|")
    for name, seconds in theirs.items():
        print(f"| {name}: {'TRL' if name.split()[0] in TRL else 'plo, plain, a process per run'} | {seconds:.0f} |")
    print(
        f"| together | {total:.0f} |\n| `plo compare`, all of them | {ours:.0f} |\n\n{result['ratio']:.1f} times cheaper"
    )


def plo(args: argparse.Namespace, folder: Path) -> float:
    experiment = {
        "name": "matrix", "model": {"name": "embedded", "peft": args.peft, "dtype": "bfloat16"}, "losses": args.losses, "seeds": list(SEEDS),
        "data": {
            "source": args.data, "path": str(data_file(args.data).resolve()), "limit": args.rows, "eval_limit": 4,
            "max_length": MAX_LENGTH,
        },
        "train": {"lr": LR[args.peft], "batch_size": BATCH, "epochs": args.epochs, "warmup": 0.0}, "eval_at": [1.0],
        "evaluation": {"prompts": 2, "samples": 1, "max_new_tokens": 8, "pairs": 4, "suite": []},
    }  # fmt: skip
    (folder / "matrix.yaml").write_text(yaml.safe_dump(experiment))
    (folder / "home").mkdir()
    (folder / "home" / "models").symlink_to(embedded_model().parent)
    environment = os.environ | {"PLO_HOME": str(folder / "home")}
    return timed([sys.executable, "-m", "plo", "compare", "matrix.yaml"], folder, environment)


def single_run(args: argparse.Namespace, loss: str, seed: int, folder: Path) -> float:
    script = Path(__file__).with_name("backbone.py")
    system = ["trl", "--loss", TRL[loss]] if loss in TRL else ["plo", "--loss", loss, "--plain", "1"]
    command = [sys.executable, script, "--worker", *system, "--folder", folder / f"{loss}-{seed}", "--seed", seed]
    for name in ("data", "peft", "rows", "epochs"):
        command += [f"--{name}", getattr(args, name)]
    return timed([str(part) for part in command], folder, os.environ)


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, input="go\n" * 10_000, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(FILES), default="hh")
    parser.add_argument("--peft", choices=["lora", "full"], default="lora")
    parser.add_argument("--losses", type=lambda text: text.split(","), default=list(TRL))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
