"""Judges in process: against transformers' own forward pass, and rewards by hand."""

import json
import math

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from plo.embedded import embedded_model
from plo.evals.judges import JudgeSession, Question, get_judge, get_template, register_gold
from plo.evals.judges.judge import JudgeError
from plo.evals.judges.local import load
from plo.registry import RegistryError

QUESTIONS = [
    Question("What is the capital of France?", "Paris.", "I do not know."),
    Question("What is the capital of France?", "I do not know.", "Paris."),
    Question("Say hello.", "Hello!", ""),
]


@pytest.fixture(scope="module")
def embedded():
    folder = embedded_model()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("template", "questions"), [("instruction", QUESTIONS), ("helpful", QUESTIONS[:1])])
def test_the_embedded_model_against_its_own_logits(embedded, template, questions):
    model, tokenizer = embedded
    for question, verdict in zip(questions, get_judge("hf:embedded", template).judge(questions), strict=True):
        messages = get_template(template).fill(question.prompt, question.a, question.b)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = model(ids).logits[0, -1].log_softmax(-1).exp()
        a, b = (p[tokenizer.convert_tokens_to_ids(label)].item() for label in "AB")
        assert verdict.p == pytest.approx(b / (a + b), abs=1e-5)


def test_labels_of_several_tokens(embedded, tmp_path):
    model, tokenizer = embedded
    (tmp_path / "long.txt").write_text("version: 1\nlabels: first-answer B\n--- user\n{prompt} {a} {b}")
    judge = get_judge("hf:embedded", str(tmp_path / "long.txt"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q x y"}], tokenize=False, add_generation_prompt=True
    )
    logps = []
    start = len(tokenizer(text).input_ids)
    for label in ("first-answer", "B"):
        ids = torch.tensor([tokenizer(text).input_ids + tokenizer(label).input_ids])
        with torch.no_grad():
            each = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        logps.append(each[start - 1 :].sum().item())
    assert len(tokenizer("first-answer").input_ids) > 1
    assert judge("q", "x", "y") == pytest.approx(
        math.exp(logps[1]) / (math.exp(logps[0]) + math.exp(logps[1])), rel=1e-3
    )


def test_the_version_names_weights_and_prompt():
    one, other = (get_judge("hf:embedded", name) for name in ("instruction", "summary"))
    assert one.version != other.version and one.model is other.model  # loaded once
    assert get_template("instruction").identity in one.version


@pytest.fixture
def tiny(tmp_path, embedded):
    """A random model that takes 512 tokens, with SmolLM2's tokenizer."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(vocab_size=49152, max_position_embeddings=512, initializer_range=0.3, **sizes)

    def save(kind, **changes):
        kind(LlamaConfig(**{**config.to_dict(), **changes})).save_pretrained(tmp_path / kind.__name__)
        embedded[1].save_pretrained(tmp_path / kind.__name__)
        return tmp_path / kind.__name__

    return save


MANY = {
    "grade": {f"[[{n}]]": (n - 1) / 9 for n in range(1, 11)},
    "arena_hard": {"[[A>>B]]": 0, "[[A>B]]": 0.25, "[[A=B]]": 0.5, "[[B>A]]": 0.75, "[[B>>A]]": 1},
}


@pytest.mark.parametrize("template", MANY)
def test_of_many_labels_the_verdict_is_the_mean(tiny, template):
    """Each label as one sequence after the prompt, by the model's own logits."""
    from transformers import LlamaForCausalLM

    judge = get_judge(f"hf:{tiny(LlamaForCausalLM)}", template)
    start, likely = judge.ids("q", "x", "y"), []
    for label in MANY[template]:
        ids = torch.tensor([start + judge.tokenizer(label, add_special_tokens=False).input_ids])
        with torch.no_grad():
            each = judge.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        likely.append(math.exp(each[len(start) - 1 :].sum().item()))
    mean = sum(value * p for value, p in zip(MANY[template].values(), likely, strict=True)) / sum(likely)
    alone = [judge.judge([question])[0].p for question in (Question("q", "x", "y"), *UNLIKE[3:5])]
    assert alone[0] == pytest.approx(mean, rel=1e-3)
    batch = [verdict.p for verdict in judge.judge([Question("q", "x", "y"), *UNLIKE[3:5]])]
    assert batch == pytest.approx(alone, abs=1e-5) and len(set(alone)) == 3


@pytest.mark.parametrize(("mass", "said"), [(0.45, True), (0.9, False)])
def test_labels_that_are_hardly_said_are_remarked_on(tiny, monkeypatch, mass, said):
    from transformers import LlamaForCausalLM

    judge = get_judge(f"hf:{tiny(LlamaForCausalLM)}")
    p = torch.full((1, 1, 49152), (1 - mass) / (49152 - 2))
    p[0, 0, [label[0] for label in judge.labels]] = torch.tensor([mass / 3, 2 * mass / 3])
    monkeypatch.setattr("plo.evals.judges.hf.last_logits", lambda *arguments: p.log())
    assert judge.judge(QUESTIONS[:1])[0].p == pytest.approx(2 / 3, abs=1e-5)
    assert (
        any("in 1 of 1 questions the labels together have less than half" in remark for remark in judge.remarks) == said
    )


@pytest.mark.parametrize("text", ["word " * 20_000, "x" * 100_000, "\ud83d\0" * 50_000, "</answer_A> {b} " * 6000])
def test_texts_longer_than_the_context(tiny, text):
    from transformers import LlamaForCausalLM

    judge = get_judge(f"hf:{tiny(LlamaForCausalLM)}")
    sides = get_judge(f"reward:{tiny(LlamaForSequenceClassification, num_labels=1)}")
    for question in (Question(text, "x", "y"), Question("p", text, "y"), Question(text, text + "1", text)):
        assert 0 < judge.judge([question])[0].p < 1
        assert 0 < sides.judge([question])[0].p < 1


def test_the_middle_of_a_long_text_goes(tiny, monkeypatch):
    from transformers import LlamaForCausalLM

    judge = get_judge(f"hf:{tiny(LlamaForCausalLM)}")
    read = []
    monkeypatch.setattr(
        "plo.evals.judges.hf.last_logits", lambda model, rows, n: read.append(rows[0]) or torch.zeros(1, n, 49152)
    )
    judge("a short prompt", "BEGIN " + "word " * 20_000 + "END", "a short answer")
    text = judge.tokenizer.decode(read[0])
    assert 450 < len(read[0]) <= 511  # a token is kept for the label
    assert all(part in text for part in ("a short prompt", "BEGIN", "END", "characters left out", "a short answer"))
    short = judge.ids("p", "x", "y")
    judge("p", "x", "y")
    assert read[1] == short


@pytest.mark.parametrize("chat", [True, False])
def test_a_reward_model_against_its_own_scores(tiny, chat):
    folder = tiny(LlamaForSequenceClassification, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not chat:
        tokenizer.chat_template = None
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    scores = []
    for answer in ("Paris.", "I do not know."):
        if chat:
            messages = [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": answer}]
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer("Capital?", answer, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores.append(model(ids).logits.item())
    judge = get_judge(f"reward:{folder}")
    difference = scores[1] - scores[0]
    assert abs(difference) > 1e-3
    assert judge("Capital?", "Paris.", "I do not know.") == pytest.approx(1 / (1 + math.exp(-difference)), abs=1e-5)
    frame = pd.DataFrame({"prompt": ["Capital?"], "a": ["Paris."], "b": ["I do not know."]})
    judging = JudgeSession(judge)
    assert judging.verdicts(frame).consistent.tolist() == [1.0] and judging.counts.asked == 1


def test_models_that_do_not_fit(tiny, tmp_path):
    with pytest.raises(JudgeError, match="has 2 outputs and a reward model has one"):
        get_judge(f"reward:{tiny(LlamaForSequenceClassification, num_labels=2)}")
    with pytest.raises(JudgeError, match="nowhere' cannot be loaded"):
        get_judge(f"hf:{tmp_path}/nowhere")


def test_gold_rewards():
    # VADER: good 1.9, great 3.1, table nothing
    sentiment = get_judge("gold:sentiment")
    assert [sentiment("", *pair) for pair in (("good", "great"), ("great", "good"), ("table", "chair"))] == [1, 0, 0.5]

    @register_gold("short")
    def short(text):
        return math.nan if text == "?" else -len(text)

    frame = pd.DataFrame({"prompt": "p", "a": ["xx", "x", "?"], "b": ["y", "z", "y"]})
    judging = JudgeSession("gold:short")
    out = judging.verdicts(frame)
    assert out.win.tolist()[:2] == [1.0, 0.5] and math.isnan(out.win[2])
    assert judging.counts.unreadable == 1
    with pytest.raises(RegistryError, match="no gold reward 'length'"):
        get_judge("gold:length")


UNLIKE = [Question("p" * i, "word " * (7 * i % 11), "text " * (5 * i % 13) + str(i)) for i in range(12)]


@pytest.mark.parametrize("template", ["instruction", "long"])
def test_a_batch_says_what_each_question_alone_says(tiny, tmp_path, template, monkeypatch):
    from transformers import LlamaForCausalLM

    (tmp_path / "long.txt").write_text("version: 1\nlabels: no-A no-B\n--- user\n{prompt} {a} {b}")
    judge = get_judge(f"hf:{tiny(LlamaForCausalLM)}", template if template != "long" else str(tmp_path / "long.txt"))
    assert (len(judge.labels[0]) > 1) == (template == "long")
    alone = [judge.judge([question])[0].p for question in UNLIKE]
    assert [v.p for v in judge.judge(UNLIKE)] == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.01
    monkeypatch.setattr("plo.evals.judges.local.MOST_TOKENS", 700)  # a few questions a pass
    assert [v.p for v in judge.judge(UNLIKE)] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("pad", [True, False])
def test_a_batch_of_answers_is_scored_as_each_alone_and_each_once(tiny, pad):
    judge = get_judge(f"reward:{tiny(LlamaForSequenceClassification, num_labels=1, pad_token_id=2 if pad else None)}")
    judge.tokenizer.pad_token_id = 2
    judge._pads = judge.model.config.pad_token_id == 2
    assert judge._pads == pad
    alone = [judge.scores([(q.prompt, answer)])[0] for q in UNLIKE for answer in (q.a, q.b)]
    passes, inner = [], judge.model.forward
    judge.model.forward = lambda **fields: passes.append(len(fields["input_ids"])) or inner(**fields)
    p = [1 / (1 + math.exp(a - b)) for a, b in zip(alone[::2], alone[1::2], strict=True)]
    assert [v.p for v in judge.judge(UNLIKE)] == pytest.approx(p, abs=1e-5) and sum(passes) == len(
        set((q.prompt, answer) for q in UNLIKE for answer in (q.a, q.b))
    )
    asked = len(passes)
    judge.judge(UNLIKE[:3])
    assert len(passes) == asked and (max(passes) > 1) == pad  # known from before


@pytest.mark.parametrize("kind", ["hf", "reward"])
def test_the_version_names_chat_template_and_tokenizer(tiny, kind):
    from transformers import LlamaForCausalLM

    folder = tiny(LlamaForCausalLM) if kind == "hf" else tiny(LlamaForSequenceClassification, num_labels=1)

    def version():
        load.cache_clear()  # as a later process would
        return get_judge(f"{kind}:{folder}").version

    seen = [version()]
    assert version() == seen[0]
    template = folder / "chat_template.jinja"
    template.write_text("Be strict. " + template.read_text())
    seen.append(version())
    rules = folder / "tokenizer.json"
    rules.write_text(rules.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true', 1))
    seen.append(version())
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 64}))
    seen.append(version())
    assert len(set(seen)) == 4


def test_the_version_of_an_adapter_names_how_it_is_scaled(tiny, embedded):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(tiny(LlamaForCausalLM))
    folder = tiny(LlamaForCausalLM).parent / "adapter"
    settings = LoraConfig(r=2, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=False)  # not 0
    get_peft_model(base, settings).save_pretrained(folder)
    embedded[1].save_pretrained(folder)
    first = get_judge(f"hf:{folder}").version
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 64}))
    load.cache_clear()
    assert get_judge(f"hf:{folder}").version != first


def test_a_score_that_is_no_number_is_no_verdict(tiny, monkeypatch):
    from transformers import LlamaForCausalLM

    judge = get_judge(f"reward:{tiny(LlamaForSequenceClassification, num_labels=1)}")
    scores = lambda answers: [math.nan if answer == "?" else 1e9 * len(answer) for _, answer in answers]  # noqa: E731
    monkeypatch.setattr(judge, "scores", scores)
    asked = [Question("p", "?", "x"), Question("p", "x", "?"), Question("p", "xx", "x"), Question("p", "x", "xx")]
    assert [verdict.p for verdict in judge.judge(asked)] == [None, None, 0.0, 1.0]
    judge = get_judge(f"hf:{tiny(LlamaForCausalLM)}")
    broken = torch.full((1, 1, 49152), math.nan)
    monkeypatch.setattr("plo.evals.judges.hf.last_logits", lambda model, ids, n: broken)
    assert judge("p", "x", "y") is None
