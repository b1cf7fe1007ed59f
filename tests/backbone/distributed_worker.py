"""What test_distributed.py runs, in one process or in several: trains the cases of a folder, each with its outcome."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, TrainerCallback

from plo import distributed
from plo.backbone import sharding, token_statistics
from plo.backbone.checkpoints import last_checkpoint
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.trainer import PreferenceTrainer
from plo.config import ModelConfig, TrainConfig
from plo.losses import get_loss

CONFIG = dict(lr=1e-2, batch_size=4, epochs=2, warmup=0.0, max_grad_norm=0.5, checkpoint_every=1000, probe_every=2)


@dataclass(frozen=True)
class Case:
    """A training. The default: five pairs at a batch of four, so that one process of two has nothing in the last step.

    Attributes:
        stop_at: save and stop there, as a kill right after a checkpoint would, then resume with a new trainer.
        chunk: logits at a time; fewer mean more chunks.
        twice: train the same backbone a second time, as the cells of a comparison do; the outcome is the second one's.
    """

    name: str
    loss: str = "dpo"
    peft: str = "lora"
    model: str = "llama"
    packed: bool = False
    pairs: int = 5
    hidden: bool = True
    stop_at: int | None = None
    twice: bool = False
    chunk: int = token_statistics.CHUNK_ELEMENTS
    train: dict[str, Any] = field(default_factory=dict)


def breaks(pairs):
    """nan for one row, which only one of the processes has."""
    values = -pairs.log_ratio_margin()
    return torch.where(pairs.columns["margin"] == 3, values * torch.nan, values)


def infinite(pairs):
    """The same without a trace in the gradient."""
    return -pairs.log_ratio_margin() + torch.where(pairs.columns["margin"] == 3, torch.inf, 0.0)


for _loss in (breaks, infinite):
    _loss.needs = ("ref_logps", "column:margin")


def ranks(pairs):
    return -pairs.log_ratio_margin().sort().values


ranks.level = "batch"
OWN = {"breaks": breaks, "infinite": infinite, "ranks": ranks}


def run(case: Case, folder: Path, out: Path) -> dict[str, Any]:
    """Curve of logged numbers and final weights, or the error."""
    token_statistics.CHUNK_ELEMENTS = case.chunk
    collectives = _Collectives()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder / case.model, dtype=torch.float64)
        backbone = Backbone(model, ModelConfig(peft=case.peft, lora_r=4))
        backbone.use_packed(case.packed)
        backbone.kept_logits = 2 * case.chunk
        backbone.double()
        if case.twice:
            train(dataclasses.replace(case, loss="ipo"), backbone, folder, out / "before")
        if case.stop_at:
            train(case, backbone, folder, out, case.stop_at)
        with collectives:
            trainer = train(case, backbone, folder, out)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    weights = {name: sharding.whole(p.detach()) for name, p in backbone.trained().items()}
    return {
        "curve": trainer.state.log_history,
        "weights": weights,
        "sharded": sharding.is_sharded(backbone),
        "collectives": collectives.count,
    }


def train(case: Case, backbone: Backbone, folder: Path, out: Path, stop_at: int | None = None) -> PreferenceTrainer:
    backbone.reset(0, get_loss(OWN.get(case.loss, case.loss)))
    backbone.double()
    pairs = torch.load(folder / "pairs.pt", weights_only=False)[: case.pairs]
    store = ReferenceStore(folder / "store")
    trainer = PreferenceTrainer(
        backbone,
        pairs,
        store.with_completions(store.get(backbone, pairs, hidden=case.hidden), backbone, pairs, backbone.loss.needs),
        TrainConfig(**(CONFIG | case.train)),
        seed=0,
        folder=out,
        probe=(pairs[:2], store.get(backbone, pairs[:2], hidden=True)),
        callbacks=[_Stop(stop_at)] if stop_at else [],
    )
    checkpoint = last_checkpoint(out)
    assert bool(checkpoint) == bool(case.stop_at and not stop_at)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


class _Collectives(TorchDispatchMode):
    """Counts what processes do together inside."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function.namespace == "c10d"
        return function(*arguments, **(keywords or {}))


class _Stop(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.start()
    shared, results = Path(sys.argv[1]), {}
    for settings in json.loads((shared / f"{sys.argv[2]}.json").read_text()):
        case = Case(**settings)
        results[case.name] = run(case, shared, shared / sys.argv[2] / case.name)
    torch.save(results, shared / f"{sys.argv[2]}-{distributed.rank()}.pt")
