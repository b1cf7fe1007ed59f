"""Measure on a GPU, in at most 8 minutes: exactness in bfloat16, speed compared with TRL, sampling of 8 adapters.

    python benchmarks/gpu.py --out gpu.json

needs no network and no files: models of the shapes of Llama 3.2 1B and Llama 3.1 8B have random weights, and pairs random tokens.
Every part runs in a process of its own, within a budget of seconds; its results are in the file as soon as they are
measured, so that a kill loses nothing, and a part that did not fit says so. `--toy` runs the same logic in seconds
without a GPU, at sizes at which no figure means anything.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MINUTES = 8.0
RESERVE = 10.0  # seconds at the end, for processes that have to be killed
MARGIN = 3.0  # seconds before a part would be killed, in which it ends by itself
# Name, function in gpu_parts, its arguments, seconds. The first ones matter most.
PARTS = (
    ("packed equals padded, 1B", "packed", {"shape": "1b"}, 60),
    ("chunked head, 1B", "head", {"shape": "1b"}, 30),
    ("plo, LoRA, 1B", "train", {"shape": "1b", "peft": "lora", "system": "plo"}, 45),
    ("TRL as shipped, LoRA, 1B", "train", {"shape": "1b", "peft": "lora", "system": "trl"}, 45),
    ("sampling of 8 adapters, 1B", "sampling", {"shape": "1b"}, 60),
    ("sampling of 8 adapters by vLLM, 1B", "vllm", {"shape": "1b"}, 75),
    ("plo, full, 1B", "train", {"shape": "1b", "peft": "full", "system": "plo"}, 45),
    ("TRL as shipped, full, 1B", "train", {"shape": "1b", "peft": "full", "system": "trl"}, 45),
    ("plo, LoRA, 8B", "train", {"shape": "8b", "peft": "lora", "system": "plo"}, 60),
    ("TRL as shipped, LoRA, 8B", "train", {"shape": "8b", "peft": "lora", "system": "trl"}, 60),
    # AdamW's states of 8B weights in float32 would not fit next to them: both systems take steps of SGD.
    ("plo, full, 8B", "train", {"shape": "8b", "peft": "full", "system": "plo", "optimizer": "sgd"}, 75),
    ("TRL as shipped, full, 8B", "train", {"shape": "8b", "peft": "full", "system": "trl", "optimizer": "sgd"}, 75),
)


def main(arguments: list[str] | None = None) -> None:
    args = parsed(arguments)
    sys.path.insert(0, str(Path(__file__).parent))
    if args.part is not None:
        return work(args)
    started = time.monotonic()
    chosen = [part for part in PARTS if args.only in part[0]]
    results: dict[str, Any] = {"toy": args.toy, "seconds": 0.0, "parts": {}}

    def kept(name: str, found: dict[str, Any]) -> None:
        results["parts"][name] = found
        results["seconds"] = round(time.monotonic() - started, 1)
        write(args.out, results)

    if args.inline:
        results["machine"] = machine()
    for number, (name, function, options, budget) in enumerate(chosen):
        left = 60 * args.minutes - RESERVE - (time.monotonic() - started)
        if left < 0.6 * budget:
            kept(name, {"error": f"not run: {left:.0f} of {60 * args.minutes:.0f} s were left"})
        elif args.inline:
            part(
                function,
                options | {"toy": args.toy, "seconds": min(budget, left)},
                lambda found, n=name: kept(n, found),
            )
        else:
            results.setdefault("machine", {})
            process(args, number, name, min(budget, left), kept, results)
    print(table(results))


def process(args, number: int, name: str, seconds: float, kept: Callable, results: dict) -> None:
    """Run a part in a process that is killed when its time is over; what it has said until then counts."""
    ends = str(time.time() + seconds)
    command = [sys.executable, __file__, "--part", str(number), "--only", args.only, "--ends", ends]
    found: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            command + ["--toy"] * args.toy, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            for line in lines(child, time.monotonic() + seconds):
                if line.startswith("@"):
                    said = json.loads(line[1:])
                    results["machine"] = said.pop("machine", results["machine"])
                    kept(name, found := found | said)
            if child.wait(15):
                log.seek(0)
                raise RuntimeError(log.read().strip()[-600:])
        except (TimeoutError, subprocess.TimeoutExpired):
            kept(name, found | {"error": f"killed after {seconds:.0f} s"})
        except RuntimeError as error:
            kept(name, found | {"error": str(error)})
        finally:
            stop(child)


def lines(child: subprocess.Popen, until: float) -> Iterator[str]:
    """Yield the lines of a process as they come, and raise a TimeoutError at a time."""
    import selectors

    waiting, rest = selectors.DefaultSelector(), b""
    assert child.stdout is not None
    waiting.register(child.stdout, selectors.EVENT_READ)
    while True:
        if not waiting.select(max(0.0, until - time.monotonic())):
            raise TimeoutError
        block = os.read(child.stdout.fileno(), 65536)
        if not block:
            return
        *whole, rest = (rest + block).split(b"\n")
        yield from (line.decode() for line in whole)


def stop(child: subprocess.Popen) -> None:
    """Kill a process that this one started, with what it started itself."""
    import signal

    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def work(args: argparse.Namespace) -> None:
    """Run one part in this process, and print what it finds as it finds it."""
    with stdout_for_results() as say:
        say({"machine": machine()})
        _, function, options, _ = [part for part in PARTS if args.only in part[0]][args.part]
        import gpu_parts  # noqa: F401 (its imports take seconds of the budget)

        part(function, options | {"toy": args.toy, "seconds": args.ends - time.time() - MARGIN}, say)


def part(function: str, options: dict[str, Any], kept: Callable[[dict], None]) -> None:
    """Run a part, and hand on what it yields; an error is a result too."""
    import gpu_parts

    found: dict[str, Any] = {}
    try:
        for said in getattr(gpu_parts, function)(**options):
            kept(found := found | said)
    except Exception as error:  # whatever a library of another version raises
        kept(found | {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"})


@contextmanager
def stdout_for_results() -> Iterator[Callable[[dict], None]]:
    """Let what libraries print go to stderr inside, and yield a function that writes a line of results."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    yield lambda found: print("@" + json.dumps(found), file=out, flush=True)


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    versions = {name: version(name) for name in ("torch", "transformers", "peft", "trl")}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "cores": os.cpu_count(), **versions}


def write(file: Path, results: dict[str, Any]) -> None:
    """Write the results completely or not at all."""
    aside = file.with_name(file.name + ".part")
    aside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    aside.replace(file)


def table(results: dict[str, Any]) -> str:
    rows = [f"{results['machine']}, {results['seconds']} s", ""]
    for name, found in results["parts"].items():
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in found.items()}
        rows.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in shown.items() if key != "all_seconds"))
    return "\n".join(rows)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON file of the results")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for everything")
    parser.add_argument("--only", default="", help="parts whose name contains this, such as 8B")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--inline", action="store_true", help="all parts in this process: no time limit is enforced")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ends", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
