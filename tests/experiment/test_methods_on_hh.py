"""SePO and TIS-DPO through their stages on the embedded model and real HH pairs, beside transformers and plain Python."""

import math
from itertools import pairwise

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from plo.backbone.trainer import PreferenceTrainer
from plo.config import load_experiment
from plo.embedded import embedded_model
from plo.experiment.scores import token_weights
from plo.experiment.workbench import prepare, workbench
from plo.paths import plo_home
from plo.scorers import get_variant

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(shared_data, tmp_path, monkeypatch):
    made = embedded_model()  # in the user's own cache
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "models").symlink_to(made.parent)
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    hh = {"source": "hh", "path": str(shared_data / "hh" / "harmless-base_test.jsonl.gz"), "limit": 12, "eval_limit": 2}
    settings = {"losses": ["dpo"], "data": hh, "model.dtype": "float32", "evaluation.pairs": 2}
    bench = workbench(load_experiment(None, settings | {"train.batch_size": 4, "train.lr": 1e-3}))
    prepare(bench)
    return bench


def by_transformers(bench, stage=None):
    """Log-probs of the response tokens from whole logits, pair by pair, with a stage's adapter or without."""
    model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    if stage is not None:
        bench.backbone.reset(0)
        bench.backbone.save(plo_home() / "empty")
        model = PeftModel.from_pretrained(model, plo_home() / "empty").eval()
        state = load_file(plo_home() / "stages" / bench.stages.key(stage) / "policy.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in state:
                    parameter.copy_(state[name])
    out = []
    for pair in bench.data.train:
        sides = []
        for response in (pair.chosen_ids, pair.rejected_ids):
            ids = torch.tensor([[*pair.prompt_ids, *response]])
            with torch.no_grad():
                log_probs = model(ids).logits[0, len(pair.prompt_ids) - 1 : -1].double().log_softmax(-1)
            sides.append([log_probs[t, token].item() for t, token in enumerate(response)])
        out.append(sides)
    return out


def near(a, b):
    return all(abs(x - y) < 2e-3 for x, y in zip(a, b, strict=True))


def test_sepo_scores_selects_and_costs_what_its_equations_say(bench):
    variant = get_variant("sepo(gamma=2.0)")
    weights = token_weights(bench.stages, variant.scorer, 0)
    before, after = by_transformers(bench), by_transformers(bench, variant.scorer.stages["oracle"])
    expected = []
    for i, sides in enumerate(weights):
        means = []
        for side, scores in enumerate(sides):
            ratios = [a - b for a, b in zip(after[i][side], before[i][side], strict=True)]
            assert near(scores.tolist(), ratios)
            count = max(1, int(0.3 * len(ratios)))
            best = sorted(range(len(ratios)), key=lambda t: scores[t].item(), reverse=side == 0)[:count]
            means.append(sum(before[i][side][t] for t in best) / count)
        expected.append(math.log1p(math.exp(-2.0 * (means[0] - means[1]))))
    assert max(abs(part).max() for sides in weights for part in sides) > 0.05  # the oracle has learnt something
    bench.backbone.reset(0, variant.loss)
    reference = bench.store.get(bench.backbone, bench.data.train)
    trainer = PreferenceTrainer(
        bench.backbone,
        bench.data.train,
        reference,
        bench.experiment.train,
        seed=0,
        folder=plo_home() / "t",
        weights=weights,
    )
    for i, value in enumerate(expected):  # at the first step the policy is the model as loaded
        assert bench.backbone(trainer._batch([i]))["sums"].item() == pytest.approx(value, rel=1e-4)


def test_tis_ranks_follow_the_two_oracles(bench):
    variant = get_variant("tis_dpo")
    weights = token_weights(bench.stages, variant.scorer, 0)
    plus, minus = (by_transformers(bench, variant.scorer.stages[name]) for name in ("positive", "negative"))
    for i, sides in enumerate(weights):
        for side, given in enumerate(sides):
            ratios = [(a - b) * (1 if side == 0 else -1) for a, b in zip(plus[i][side], minus[i][side], strict=True)]
            ids = (bench.data.train[i].chosen_ids, bench.data.train[i].rejected_ids)[side]
            size, eos = len(ratios), bench.tokenizer.eos_token_id
            if eos not in ids:  # cut by truncation: nothing is left out
                continue
            assert given[-1] == 0
            # rank r of T tokens has weight .7 + .6 r / (T - 1); rounding may exchange ranks of ratios that are as good as equal
            by_weight = sorted(range(size - 1), key=lambda t: given[t].item())
            assert all(ratios[a] <= ratios[b] + 4e-3 for a, b in pairwise(by_weight))
            ranks = sorted(round((w - 0.7) / 0.6 * (size - 1), 3) for w in given[:-1].tolist())
            last = sorted(range(size), key=lambda t: ratios[t]).index(size - 1)
            assert any(ranks == [r for r in range(size) if r != left] for left in range(max(0, last - 3), last + 4))


def test_the_same_oracle_serves_two_seeds_and_its_weights_do_not_change(bench):
    scorer = get_variant("sepo").scorer
    first = token_weights(bench.stages, scorer, 0)
    files = {path: path.stat().st_mtime_ns for path in plo_home().rglob("*.safetensors")}
    again = token_weights(bench.stages, scorer, 7)
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert {path: path.stat().st_mtime_ns for path in plo_home().rglob("*.safetensors")} == files
