"""lm-eval on a model in memory: its figures against ones worked out from the model's own logits."""

import copy
import json
import logging
import os
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plo.evals import EvaluationError, get_model_evaluation
from plo.evals.harness import lm_eval

pytest.importorskip("lm_eval", reason="needs pip install 'plo[evals]'")

COLOURS = ["red", "green", "blue", "dark blue"]
THINGS = ["sky", "grass", "blood", "sea", "leaf", "rose", "ink", "moss"]
WORDS = ["<pad>", "<eos>", "what", "is", "the", "dark", *COLOURS[:3], *THINGS, "yes", "no"]
ASKED = [f"what is the {dark}{thing}" for dark in ("", "dark ") for thing in THINGS]
DOCS = [{"question": question, "choices": COLOURS, "answer": i % 4} for i, question in enumerate(ASKED)]


@dataclass
class Given:
    """A subject that holds a model."""

    model: Any
    tokenizer: Any
    name: str = "tiny"
    asked: list = field(default_factory=list)

    def causal_lm(self):
        return self.model, self.tokenizer


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")  # no padding token: lm-eval sets one


@pytest.fixture
def subject(tiny_llama, tokenizer):
    return Given(tiny_llama(1, torch.float32, vocab_size=len(WORDS), initializer_range=1.0), tokenizer)


@pytest.fixture
def task(tmp_path):
    """Write a task file over local rows; returns its folder."""

    def make(name: str, rows: list[dict] = DOCS, **changes) -> Path:
        data = tmp_path / "rows" / f"{name}.jsonl"
        data.parent.mkdir(exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}", "doc_to_target": "answer", "metadata": {"version": 2.0},
            "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm")],
        }  # fmt: skip
        return group(name, **settings | changes)

    def group(name: str, **settings) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        return folder

    make.group = group
    return make


@pytest.fixture(autouse=True)
def _swift_and_clean(tmp_path, monkeypatch):
    import datasets
    import lm_eval.evaluator

    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)  # seconds of asking the machine
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@torch.no_grad()
def likelihoods(subject, asked="{}"):
    """[document, choice] log pi(choice | question), one sequence at a time."""
    found = np.zeros((len(DOCS), len(COLOURS)))
    for i, row in enumerate(DOCS):
        prompt = subject.tokenizer(asked.format(row["question"]))["input_ids"]
        for j, colour in enumerate(COLOURS):
            answer = subject.tokenizer(colour)["input_ids"]
            logps = subject.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            found[i, j] = sum(logps[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer))
    return found


def test_multiple_choice_by_hand(subject, task):
    found = lm_eval(subject, tasks=("colours",), include_path=task("colours"), batch_size=3)
    gold = np.array([row["answer"] for row in DOCS])
    scores = likelihoods(subject)
    acc = scores.argmax(1) == gold
    acc_norm = (scores / [len(colour) for colour in COLOURS]).argmax(1) == gold
    assert 0 < acc.mean() < 1 and acc.tolist() != acc_norm.tolist()
    assert found.metrics == {"colours.acc": acc.mean(), "colours.acc_norm": acc_norm.mean()}
    assert found.items["colours.acc"].tolist() == acc.tolist()
    assert found.items["colours.acc_norm"].tolist() == acc_norm.tolist()
    assert found.items["task"].unique().tolist() == ["colours"]
    assert "lm-eval 0.4" in found.notes[0] and "colours (version 2.0, 0-shot)" in found.notes[0]
    assert "template not applied" in found.notes[0] and "local task files: colours" in found.notes[1]


def test_adapters_are_on(subject, task):
    from peft import LoraConfig, get_peft_model

    folder, plain = task("colours"), likelihoods(subject)
    before = lm_eval(subject, tasks=("colours",), include_path=folder)
    adapted = get_peft_model(
        subject.model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    subject = Given(adapted, subject.tokenizer)
    found = lm_eval(subject, tasks=("colours",), include_path=folder)
    ours = likelihoods(subject).argmax(1)
    assert ours.tolist() != plain.argmax(1).tolist()
    assert found.items["colours.acc"].tolist() == [
        choice == row["answer"] for choice, row in zip(ours, DOCS, strict=True)
    ]
    assert found.items["prompt_id"].tolist() == before.items["prompt_id"].tolist()  # cells pair
    with adapted.disable_adapter():
        again = lm_eval(subject, tasks=("colours",), include_path=folder)
    pd.testing.assert_frame_equal(again.items, before.items)


def test_a_chat_template_is_applied(subject, task):
    subject.tokenizer.chat_template = "{% for m in messages %}yes {{ m['content'] }} is {% endfor %}"
    found = lm_eval(subject, tasks=("colours",), include_path=task("colours"), chat=True)
    ours, plain = likelihoods(subject, "yes {} is").argmax(1), likelihoods(subject).argmax(1)
    assert ours.tolist() != plain.tolist()
    assert found.items["colours.acc"].tolist() == [c == row["answer"] for c, row in zip(ours, DOCS, strict=True)]
    assert "chat template applied" in found.notes[0]


def test_a_limit_is_said_and_pairs_with_the_whole(subject, task):
    folder = task("colours")
    whole = lm_eval(subject, tasks=("colours",), include_path=folder)
    part = lm_eval(subject, tasks=("colours",), include_path=folder, limit=3)
    assert any("first 3 documents" in note and "not comparable" in note for note in part.notes)
    assert not any("documents" in note for note in whole.notes)
    pd.testing.assert_frame_equal(part.items, whole.items.head(3))


def test_a_column_is_there_only_for_means(subject, task):
    folder = task("colours", metric_list=[{"metric": "acc"}, {"metric": "mcc"}])
    said = {"output_type": "loglikelihood", "doc_to_target": " {{choices[answer]}}", "doc_to_choice": None}
    task("said", **said, metric_list=[{"metric": "perplexity"}, {"metric": "acc"}])
    found = lm_eval(subject, tasks=("colours", "said"), include_path=folder)
    scores = likelihoods(subject)[np.arange(len(DOCS)), [row["answer"] for row in DOCS]]
    assert found.metrics["said.perplexity"] == pytest.approx(np.exp(-scores.mean()), rel=1e-5)
    assert set(found.metrics) == {"colours.acc", "colours.mcc", "said.acc", "said.perplexity"}
    assert set(found.items.columns) == {"prompt_id", "task", "colours.acc", "said.acc"}
    assert found.items["colours.acc"].notna().tolist() == (found.items["task"] == "colours").tolist()
    assert found.items["prompt_id"].is_unique and len(found.items) == 2 * len(DOCS)
    assert found.items["colours.acc"].mean() == found.metrics["colours.acc"]


@pytest.mark.parametrize("weighted", [True, False])
def test_a_group_has_its_aggregate(subject, task, weighted):
    task("few", DOCS[:2])
    task("many", DOCS[2:])
    aggregate = [{"metric": "acc", "aggregation": "mean", "weight_by_size": weighted}]
    folder = task.group("both", group="both", task=["few", "many"], aggregate_metric_list=aggregate)
    found = lm_eval(subject, tasks=("both",), include_path=folder)
    right = likelihoods(subject).argmax(1) == [row["answer"] for row in DOCS]
    parts = [right[:2].mean(), right[2:].mean()]
    assert parts[0] != parts[1]
    assert [found.metrics["few.acc"], found.metrics["many.acc"]] == parts
    assert found.metrics["both.acc"] == pytest.approx(right.mean() if weighted else np.mean(parts), abs=1e-12)
    assert ("both.acc" in found.items) == weighted  # the mean of two means is no mean over documents
    if weighted:
        assert found.items["both.acc"].tolist() == right.tolist()


@torch.no_grad()
def says(subject, question):
    """Four greedy tokens, by transformers alone."""
    ids = torch.tensor([subject.tokenizer(question)["input_ids"]])
    out = subject.model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    return subject.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_thought_is_no_part_of_what_is_generated(subject, task):
    said = [says(subject, row["question"]) for row in DOCS[:3]]
    mark = said[0].split()[0]  # a word that the model says stands for the end of a thought
    rests = [text.split(mark)[-1].strip() for text in said]
    rows = [{"question": row["question"], "answer": rest} for row, rest in zip(DOCS, rests, strict=False)]
    folder = task(
        "talk", rows, output_type="generate_until", doc_to_choice=None, doc_to_target="{{answer}}",
        metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    )  # fmt: skip
    found = lm_eval(subject, tasks=("talk",), include_path=folder, think_end_token=mark)
    assert found.metrics["talk.exact_match"] == 1
    count = sum(mark in text for text in said)
    assert f"{count} generated texts begin with a thought, which is removed up to {mark}." in found.notes
    kept = lm_eval(subject, tasks=("talk",), include_path=folder)  # </think> is no token of this model
    assert kept.items["talk.exact_match"].tolist()[0] == 0 and not any("thought" in note for note in kept.notes)


def test_generation_with_two_readings(subject, task):
    said = [says(subject, row["question"]) for row in DOCS[:3]]
    assert all(len(text.split()) > 1 for text in said)
    # The second is right in its first word alone; the third is not right.
    answers = [said[0], said[1].split()[0], "never"]
    rows = [{"question": row["question"], "answer": answer} for row, answer in zip(DOCS, answers, strict=False)]
    readings = [
        {"name": "whole-answer", "filter": [{"function": "take_first"}]},
        {"name": "1st word", "filter": [{"function": "regex", "regex_pattern": r"(\S+)"}, {"function": "take_first"}]},
    ]
    folder = task(
        "talk", rows, output_type="generate_until", doc_to_choice=None, doc_to_target="{{answer}}",
        metric_list=[{"metric": "exact_match"}], filter_list=readings,
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    )  # fmt: skip
    found = lm_eval(subject, tasks=("talk",), include_path=folder)
    whole, first = "talk.exact_match.whole-answer", "talk.exact_match.1st word"
    assert found.items[whole].tolist() == [1, 0, 0] and found.items[first].tolist() == [0, 1, 0]
    assert found.metrics == {whole: pytest.approx(1 / 3), first: pytest.approx(1 / 3)}


def test_all_is_left_as_found(subject, task, monkeypatch):
    monkeypatch.delenv("HF_XET_HIGH_PERFORMANCE", raising=False)  # lm-eval sets it on import
    model, tokens = subject.model, subject.tokenizer
    logger = logging.getLogger("lm_eval")
    random.seed(5), np.random.seed(5), torch.manual_seed(5)

    def state():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
        weights = [weight.sum().item() for weight in model.parameters()]
        ours = [model.training, model.config.to_dict(), model.generation_config.to_dict(), tokens.pad_token]
        process = [
            torch.is_grad_enabled(),
            logger.level,
            dict(os.environ),
            random.getstate(),
            torch.get_rng_state().tolist(),
        ]
        return copy.deepcopy([hooks, weights, *ours, tokens.padding_side, *process, str(np.random.get_state())])

    before = state()
    folder = task(
        "talk", output_type="generate_until", metric_list=[{"metric": "exact_match"}], doc_to_target="no",
        doc_to_choice=None, generation_kwargs={"until": ["red"], "max_gen_toks": 4, "do_sample": True, "temperature": 0.7},
    )  # fmt: skip
    lm_eval(subject, tasks=("talk",), include_path=folder, limit=2)
    assert state() == before


def test_what_cannot_run_is_said(subject, task, tmp_path):
    folder = task("colours")
    with pytest.raises(EvaluationError, match=r"no task 'helaswag'.*Near: .*hellaswag.*include_path"):
        lm_eval(subject, tasks=("colours", "helaswag"), include_path=folder)
    with pytest.raises(
        EvaluationError, match=r"'winogrande' cannot be loaded.*allenai/winogrande.*include_path=FOLDER"
    ):
        lm_eval(subject, tasks=("winogrande",), include_path=folder)
    (tmp_path / "rows" / "colours.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"'colours' cannot be loaded.*colours\.jsonl"):
        lm_eval(subject, tasks=("colours",), include_path=folder)
    with pytest.raises(EvaluationError, match=r"nowhere.*not a folder"):
        lm_eval(subject, tasks=("colours",), include_path=tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match="no chat template"):
        lm_eval(subject, tasks=("colours",), include_path=folder, chat=True)


@pytest.mark.parametrize("more", [{}, {"aggregation": "mean", "higher_is_better": True}])
def test_a_misspelt_metric_is_no_silence(subject, task, more):
    folder = task("things", metric_list=[{"metric": "acc"}, {"metric": "acc_nrom", **more}])
    message = r"'things' names the metric 'acc_nrom', which lm-eval does not have. Near: .*acc_norm.*metric_list"
    with pytest.raises(EvaluationError, match=message):
        lm_eval(subject, tasks=("things",), include_path=folder)


def test_data_without_rows_are_said(subject, task):
    with pytest.raises(EvaluationError, match=r"'things' has no rows: fix the data_files"):
        lm_eval(subject, tasks=("things",), include_path=task("things", []))


@pytest.mark.parametrize(("written", "tasks"), [("gsm8k", ("gsm8k",)), ("a, b", ("a", "b")), (["a"], ("a",))])
def test_tasks_are_a_list_however_written(written, tasks):
    assert get_model_evaluation("lm_eval", {"tasks": written}).options["tasks"] == tasks


def test_it_is_registered_with_its_options(subject, task):
    run = get_model_evaluation("lm_eval", {"tasks": ["colours"], "include_path": str(task("colours")), "limit": 2})
    assert not run.asks_judge and set(run(subject).metrics) == {"colours.acc", "colours.acc_norm"}


@pytest.mark.slow
@torch.no_grad()
def test_gsm8k_asks_as_the_built_in_task_does(shared_data, task):
    """Both readings of greedy answers of the embedded model, worked out here with GSM8K's own regular expressions."""
    import lm_eval as package
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from plo.embedded import embedded_model

    rows = (shared_data / "lm_eval" / "gsm8k_test.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows[:20]]
    model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    built_in = Path(package.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    data = task("rows", rows).parent / "rows" / "rows.jsonl"
    (data.parents[1] / "tasks" / "rows.yaml").unlink()
    files = {"data_files": {"train": str(data), "test": str(data)}}
    short = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 64}
    folder = task.group(
        "gsm8k", include=str(built_in), dataset_path="json", dataset_name=None, dataset_kwargs=files, num_fewshot=0,
        generation_kwargs=short,
    )  # fmt: skip
    found = lm_eval(Given(model, tokenizer), tasks=("gsm8k",), include_path=folder, limit=3)

    expected = {"strict-match": [], "flexible-extract": []}
    for row in rows[:3]:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt")
        out = model.generate(**prompt, max_new_tokens=64, do_sample=False)
        text = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).split("Question:")[0]
        gold = row["answer"].split("#### ")[1].replace(",", "")
        strict = re.findall(r"#### (\-?[0-9.,]+)", text)
        loose = [a or b for a, b in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)]
        for how, answer in (("strict-match", strict[:1]), ("flexible-extract", loose[-1:])):
            plain = "".join(answer).replace(",", "").replace("$", "").removesuffix(".")
            expected[how].append(plain == gold)
    for how, right in expected.items():
        assert found.items[f"gsm8k.exact_match.{how}"].tolist() == right
        assert found.metrics[f"gsm8k.exact_match.{how}"] == np.mean(right)
    assert "gsm8k (version 3.0, 0-shot)" in found.notes[0]
