"""Judges by specification: options in the text, what is refused before anything is loaded."""

import sys

import pytest
from scripted import Scripted

from plo.configured import HyperParameterError
from plo.evals.judges import (
    JudgeError,
    JudgeSession,
    get_judge,
    register_judge,
)
from plo.evals.judges.judge import read_spec, spec_text
from plo.extras import MissingExtra


@pytest.mark.parametrize(
    "judge", [lambda question: 0.5, lambda prompt, answer: 0.5, lambda prompt, a, b, c: 0.5], ids=["one", "two", "four"]
)
def test_a_function_that_takes_something_else_is_refused_before_anything_is_judged(judge):
    register_judge("own")(judge)
    with pytest.raises(
        JudgeError, match=r"The judge 'own' cannot be asked with a prompt and two answers, .*\(prompt, a, b\)"
    ):
        get_judge("own")


def test_options_in_the_text():
    @register_judge("longer")
    def longer(prompt, a, b, *, margin: int = 0, note: str = ""):
        return float(len(b) > len(a) + margin)

    for spec in ("longer(margin=3)", {"longer": {"margin": 3}}, " longer (margin = 3) "):
        judge = get_judge(spec)
        assert judge("p", "x", "yyy") == 0.0 and judge("p", "x", "yyyyy") == 1.0 and judge.name == "longer(margin=3)"
        assert JudgeSession(spec).name == "longer"
    assert get_judge("longer(note='a (b=1)')").params["note"] == "a (b=1)"
    with pytest.raises(HyperParameterError, match="no hyper-parameter 'size'"):
        get_judge("longer(size=3)")
    with pytest.raises(JudgeError, match=r"'longer\(3\)' cannot be read: write KIND:NAME\(option=value"):
        get_judge("longer(3)")
    with pytest.raises(JudgeError, match="Cannot make a judge from 3"):
        get_judge(3)


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("openai:m@http://h:1/v1", "openai:m@http://h:1/v1", {}),
        ("openai:m@http://h:1/v1(price_in=2.5, logprobs=False)", "openai:m@http://h:1/v1", {"price_in": 2.5, "logprobs": False}),
        ("openai:m(request={'stop': ['(', ')'], 'n': None})", "openai:m", {"request": {"stop": ["(", ")"], "n": None}}),
        ("hf:my model (2)/final(dtype=bfloat16)", "hf:my model (2)/final", {"dtype": "bfloat16"}),
        ({"hf:my model (2)": None}, "hf:my model (2)", {}),
        ({"openai:m": {"price_in": 1}}, "openai:m", {"price_in": 1}),
    ],
)  # fmt: skip
def test_what_a_specification_says(spec, name, options):
    assert read_spec(spec) == (name, options) and JudgeSession(spec).name == name


def test_names_of_what_is_no_text():
    def longer(prompt, a, b):
        return 0.5

    assert JudgeSession(longer).name == "longer" and JudgeSession(Scripted(longer)).name == "scripted"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("opnai:gpt-4o", "no judge 'opnai'.*'openai'"),
        ("openai:gpt-4o(price=2)", "no hyper-parameter 'price'"),
        ("openai:gpt-4o(price_in=cheap)", "price_in='cheap'"),
        ("openai:gpt-4o", "OPENAI_API_KEY"),
        ("gold:joy", "no gold reward 'joy'"),
        ("replay:nowhere.json", "nothing at nowhere.json"),
        ("hf:nowhere(dtyp=float32)", "no hyper-parameter 'dtyp'"),
        ("reward:nowhere(dtype=7)", "dtype=7"),
        ({"gold:sentiment": {}, "hf:embedded": {}}, "not one name"),
    ],
)
def test_check_tells_before_anything_is_loaded(spec, message):
    with pytest.raises(ValueError, match=message):
        JudgeSession(spec).check()


def test_check_loads_no_model_and_calls_nobody(serve):
    server = serve(lambda body: "A")
    for spec in ("hf:nowhere", "reward:nowhere(dtype=float32)", f"openai:m@{server.url}", "gold:sentiment"):
        JudgeSession(spec).check()
    assert not server.asked


def test_check_wants_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"pip install 'plo\[evals\]'"):
        JudgeSession("openai:m@http://127.0.0.1:1/v1").check()


def test_a_specification_as_the_command_line_takes_it():
    spec = {"openai:m@http://h/v1": {"timeout": 5, "request": {"seed": 1}}}
    text = spec_text(spec)
    assert text.startswith("openai:m@http://h/v1(timeout=5, ") and read_spec(text) == read_spec(spec)
    assert spec_text("hf:embedded") == spec_text({"hf:embedded": {}}) == "hf:embedded"
