"""Pinned judges, in process and behind a server, and prompts that ask for two scores."""

import json
import math

import pytest
import yaml

from plo.evals.judges import JudgeError, JudgeSession, Question, get_judge, get_template
from plo.evals.judges.pinned import FOLDER, read_pinned

BUILT_IN = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SCORES = get_template("helpful_scores")


@pytest.mark.parametrize(
    ("answer", "p"),
    [
        ("score_A: 7\nscore_B: 5", 1 / (1 + math.exp(0.6))),  # .3 a point
        ("score_A: 2\nscore_B: 2", 0.5),
        ('{"score_A": 0, "score_B": 10}', 1 / (1 + math.exp(-3.0))),
        ("**Score A:** 6.5/10\n**Score B:** 7/10", 1 / (1 + math.exp(-0.15))),
        ("<think>score_A: 1</think>score_A: 3\nscore_B: 3", 0.5),
        ("score_A: 7", None),
        ("score_A: 70\nscore_B: 5", None),
        ("score_A: -1\nscore_B: 5", None),
        ("score_A: 7, no, score_A: 6\nscore_B: 5", None),
        ("score_A: <number from 0 to 10>\nscore_B: 5", None),
        ("A: 7, B: 5", None),
        ("", None),
    ],
)
def test_two_scores(answer, p):
    assert SCORES.read(answer) == (p if p is None else pytest.approx(p))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_specification_is_complete(name):
    spec, _ = read_pinned(name)
    assert len(spec.revision) == 40 and spec.templates.keys() >= {"instruction", "helpful", "harmless", "summary"}
    for asked, own in spec.templates.items():
        template = get_template(own)
        assert template.answer == "scores" and set(template.labels) == {"A", "B"}
        question = get_template(asked).messages[-1][1].split("</")[0]  # the same texts in the same places
        assert template.messages[-1][1].startswith(question)


def test_a_server_is_asked_as_the_specification_says(serve):
    server = serve(lambda body: "score_A: 4\nscore_B: 9")
    judging = JudgeSession(f"pinned:{BUILT_IN[0]}@{server.url}(repeats=2, price_in=1)")
    judge = judging.judge("helpful")
    assert judge.name == f"pinned:{BUILT_IN[0]}-v1@{server.url}" and judge.repeatable and judge.template == SCORES
    assert judging.ask([Question("p", "x", "y")], "helpful")[0].p == pytest.approx(1 / (1 + math.exp(-1.5)))
    spec, (body,) = read_pinned(BUILT_IN[0])[0], server.asked
    assert (body["model"], body["temperature"], body["max_tokens"]) == (spec.model, 0, 40) and "logprobs" not in body
    assert "score_A: <number" in body["messages"][-1]["content"]
    with pytest.raises(
        JudgeError, match="has no prompt for the question 'helpful_scores', only for instruction, helpful"
    ):
        judging.judge("helpful_scores")


def test_a_server_that_refuses_a_pinned_setting_is_not_asked_without_it(serve):
    server = serve(lambda body: (400, {"error": {"message": "'temperature' is not supported"}}, ()))
    with pytest.raises(
        JudgeError, match=r"'temperature' is not supported.* start a server that takes them, such as vLLM"
    ):
        JudgeSession(f"pinned:{BUILT_IN[0]}@{server.url}").ask([Question("p", "x", "y")], "helpful")
    assert len(server.asked) == 1


def test_a_specification_of_the_users_in_process(tmp_path):
    """The model's own greedy text is the answer, whatever batch a question is in, and whatever its folder says of sampling."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from plo.embedded import embedded_model

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=49152, max_position_embeddings=1024, initializer_range=0.3, **sizes)
    )
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    model.generation_config.update(do_sample=True, temperature=0.7, repetition_penalty=1.3)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    spec = {
        "version": 3,
        "model": str(tmp_path / "model"),
        "dtype": "float32",
        "templates": {"helpful": "helpful_scores"},
    }
    (tmp_path / "mine.v2.yaml").write_text(yaml.safe_dump(spec))
    questions = [
        Question("Say hello.", "Hello!", "No."),
        Question("What is 2 + 2? " * 4, "Four, as 2 and 2 are 4.", "5"),
    ]
    judging = JudgeSession(f"pinned:{tmp_path / 'mine.v2.yaml'}")
    judge = judging.judge("helpful")
    assert judge.name == "pinned:mine.v2-v3" and not judge.repeatable
    found = judge.judge(questions)
    for question, verdict in zip(questions, found, strict=True):
        messages = SCORES.fill(question.prompt, question.a, question.b)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        with torch.no_grad():
            for _ in range(40):  # greedy, token by token
                ids = torch.cat([ids, model.eval()(ids).logits[:, -1:].argmax(-1)], 1)
        said = ids[0, start:].tolist()
        said = said[: said.index(model.config.eos_token_id)] if model.config.eos_token_id in said else said
        assert verdict.answer == tokenizer.decode(said, skip_special_tokens=True)
        assert verdict.p is None  # it writes no scores
    (tmp_path / "mine.v2.yaml").write_text(yaml.safe_dump(spec | {"version": 4}))
    assert get_judge(f"pinned:{tmp_path / 'mine.v2.yaml'}", "helpful").version != judge.version
    with pytest.raises(JudgeError, match="gives the same verdict whenever it is asked"):
        JudgeSession(f"pinned:{tmp_path / 'mine.v2.yaml'}(repeats=2)").judge("helpful")


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(JudgeError, match=rf"no pinned judge 'other'.*Built in: {BUILT_IN[0]}"):
        get_judge("pinned:other", "helpful")
    (tmp_path / "bad.yaml").write_text(json.dumps({"version": 1, "model": "m", "template": "helpful"}))
    with pytest.raises(JudgeError, match=r"(?s)bad.yaml cannot be used.*templates.*is an example"):
        get_judge(f"pinned:{tmp_path / 'bad.yaml'}", "helpful")
