"""Whole comparisons on a tiny model: recorded, skipped when finished, resumed when broken, going on when one fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plo.config import ConfigError
from plo.experiment.matrix import compare
from plo.experiment.preflight import configured_variants
from plo.leaderboards import read
from plo.tracking import Tracker

ROOT = Path(__file__).parents[2]


def cells(select=None):
    return {cell.name: cell for cell in Tracker(create=False).cells(select)}


def test_a_comparison_records_every_cell_and_reference_and_sft_beside(tiny):
    outcome = compare(tiny(losses=["dpo", {"bpo": {"lam": 0.5}}], seeds=[0, 1]))
    assert not outcome.failed
    names = {f"{loss} seed {seed}" for loss in ("reference", "sft", "dpo", "bpo(lam=0.5)") for seed in (0, 1)}
    assert cells().keys() == names
    dpo = cells()["dpo seed 1"]
    assert dpo.status == "FINISHED" and dpo.params["lr"] == "0.001" and dpo.params["beta"] == "0.1"
    assert {"kl", "entropy", "ref_nll", "distinct_1", "preference_accuracy", "probe/kl_ref_pi"} <= dpo.metrics.keys()
    assert len(dpo.history("loss")) == len(dpo.history("log_ratios/chosen")) >= 4
    assert len(dpo.history("kl")) == 2  # at half and at the end
    assert len(dpo.table("samples.json")) == 6
    assert cells()["reference seed 0"].metrics["kl"] == 0
    assert (dpo.folder / "adapter_model.safetensors").exists()
    assert not list(Path("runs").rglob("checkpoint-*"))  # optimiser states go when the cell is recorded
    board = read(Tracker(create=False), "tiny")
    assert [row.variant for row in board.rows] == ["reference", "sft", "bpo(lam=0.5)", "dpo"]


def test_started_again_it_computes_nothing_and_new_losses_join(tiny, monkeypatch):
    import plo.experiment.runner as runner

    ran = []
    inner = runner.run_cell
    monkeypatch.setattr(runner, "run_cell", lambda cell, *a: ran.append(cell.name) or inner(cell, *a))
    compare(tiny())
    assert ran == ["reference seed 0", "sft seed 0", "dpo seed 0"]
    compare(tiny())
    assert len(ran) == 3
    compare(tiny(losses=["dpo", "ipo"]))
    assert ran[3:] == ["ipo seed 0"]
    assert len(Tracker(create=False).comparisons()) == 1
    compare(tiny(**{"train.lr": 2e-3}))  # another optimisation is another comparison
    assert len(ran) == 7 and len(Tracker(create=False).comparisons()) == 2


def test_a_changed_plug_in_is_trained_again(tiny, tmp_path):
    """In a process of its own each time, as a user edits and runs again: words change nothing, the generator does."""
    plugin = tmp_path / "mine.py"
    keys = []
    for words, power in (("One.", 2), ("Another.", 2), ("Another.", 4)):
        plugin.write_text(
            f"from plo import register_generator\n@register_generator('mine')\ndef mine(R):\n    '{words}'\n    return R**{power}\n"
        )
        script = (
            "from plo.registry import load_plugin; from plo import get_loss; import hashlib; from plo.losses.identity import loss_identity\n"
            f"load_plugin({str(plugin)!r})\n"
            "loss = get_loss('bpo', generator='mine')\n"
            "print(loss.name, hashlib.sha256(loss_identity(loss).encode()).hexdigest())"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        keys.append(run.stdout)
    assert keys[0] == keys[1] != keys[2]


def test_a_comparison_s_key_leaves_defaults_out():
    from types import SimpleNamespace

    from plo.config import load_experiment
    from plo.experiment.keys import shared_settings

    changes = {"losses": ["dpo"], "eval_at": [0.5], "train.lr": 1e-3, "model.lora_r": 4, "evaluation.prompts": 3}
    experiment = load_experiment(None, changes)
    bench = SimpleNamespace(experiment=experiment, model_identity="m", data=SimpleNamespace(digest="d"), suite=("own",))
    assert shared_settings(bench) == {
        "model": ["m", {"lora_r": 4}],
        "data": "d",
        "train": {"lr": 1e-3, "max_grad_norm": None},  # not its first default
        "eval_at": (0.5, 1.0),
        "evaluation": [{"prompts": 3, "suite": ["ngram_diversity", "repetition"], "drawn": 2}, ("own",)],
    }


def test_what_changes_no_number_is_no_other_comparison(tiny, monkeypatch):
    import plo.experiment.runner as runner

    ran = []
    inner = runner.run_cell
    monkeypatch.setattr(runner, "run_cell", lambda cell, *a: ran.append(cell.name) or inner(cell, *a))
    compare(tiny())
    compare(tiny(**{"train.log_every": 3, "train.checkpoint_every": 1, "evaluation.batch_size": 2}))
    assert len(ran) == 3


def test_a_failing_cell_is_reported_and_the_others_go_on(tiny, tmp_path):
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from plo import register_loss\n@register_loss('nan_loss', needs=('ref_logps',), replace=True)\n"
        "def nan_loss(pairs):\n    return pairs.log_ratio_margin() * float('nan')\n"
    )
    outcome = compare(tiny(losses=["nan_loss", "dpo"], plugins=[str(plugin)]))
    assert "not finite at step 1, rows:" in outcome.failed["nan_loss seed 0"]
    assert cells()["dpo seed 0"].status == "FINISHED" and cells()["nan_loss seed 0"].status == "FAILED"
    again = compare(tiny(losses=["nan_loss", "dpo"], plugins=[str(plugin)]))  # redone, and failing again
    assert list(again.failed) == ["nan_loss seed 0"]


def test_seeds_share_noise_across_losses_and_differ_from_each_other(tiny):
    compare(tiny(losses=["dpo"], seeds=[0, 1], **{"train.lr": 1e-12}))  # nothing moves: only the noise is left
    texts = {name: cell.table("samples.json").text.tolist() for name, cell in cells().items()}
    assert texts["reference seed 0"] == texts["dpo seed 0"] == texts["sft seed 0"]
    assert texts["dpo seed 0"] != texts["dpo seed 1"]


def test_a_loss_stands_there_once():
    from plo.config import ConfigError, load_experiment

    with pytest.raises(ConfigError, match="lists dpo twice"):
        configured_variants(load_experiment(None, {"losses": ["dpo", {"dpo": {"beta": 0.1}}]}))


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["KILL", "INT"])
def test_killed_five_times_it_ends_like_an_undisturbed_run(tiny, tmp_path, signal):
    import yaml

    experiment = tiny(losses=["dpo", "tbpo_q"], seeds=[0, 1]).model_dump(mode="json", exclude={"out", "store"})
    experiment["train"] |= {"epochs": 12}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    options = ["--kills", "5", "--signal", signal, "--folder", str(tmp_path / "kills"), "--", "plo", "compare"]
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", *options, "experiment.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout[done.stdout.index("{") :])
    assert (
        summary["kills"] == 5 and summary["rows"] == 4 and summary["models"] == 6
    )  # sft, dpo and tbpo_q with two seeds


def test_a_variant_trains_with_settings_of_its_own(tiny):
    """One step with a learning rate of 0 leaves the reference; the row beside it has the experiment's."""
    losses = ["dpo", {"dpo": {"train": {"lr": 1e-12, "epochs": 1}}}]
    assert not compare(tiny(losses=losses, **{"train.epochs": 2})).failed
    own, common = cells()["dpo @ epochs=1 lr=1e-12 seed 0"], cells()["dpo seed 0"]
    assert own.params["lr"] == own.params["train.lr"] == "1e-12" and common.params["lr"] == "0.001"
    assert len(common.history("loss")) == 2 * len(own.history("loss"))
    assert abs(own.metrics["kl"]) < 1e-6 < common.metrics["kl"]
    with pytest.raises(ConfigError, match=r"(?s)training of dpo @ micro_batch_size=3 cannot be used.*not a multiple"):
        compare(tiny(losses=["dpo @ micro_batch_size=3"]))
