"""Which edits of code and settings make another thing of it, and which do not."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from plo.config import EvaluationConfig, ModelConfig, Section, TrainConfig
from plo.evals import EVALUATIONS
from plo.identity import _Walk, code_identity, settings_identity
from plo.losses import get_loss
from plo.losses.identity import loss_identity
from plo.pairs import Pairs, Side
from plo.paths import content_digest
from plo.scorers import get_scorer

PLUGIN = '''
"""A plug-in."""
import functools
import math

import torch
from plo import register_loss

SCALE = 2.0
WORDS = ["good", "fine"]
CACHE = {}
COUNT = 0


def helper(x):
    """What a helper says."""
    return inner(x) * SCALE


def inner(x):
    return x + 1  # a comment


def unused(x):
    return x - 1


class Base:
    rate = 0.5

    def apply(self, x):
        return x * self.rate


class Thing(Base):
    """A thing."""

    offset: float = 1.0

    def __call__(self, x: float) -> float:
        return self.apply(x) + self.offset


def doubled(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return 2 * function(*arguments)

    return wrapper


@doubled
def decorated(x):
    return x + 10


@functools.cache
def cached(x):
    return x + 20


@torch.no_grad()
def without_gradient(x):
    return x + 25


def closing(power):
    def power_of(x):
        return x**power

    return power_of


cube = closing(3)
part = functools.partial(inner, x=30)
rule, other = lambda x: x + 40, lambda x: x + 41
thing = Thing()


@register_loss("mine", needs=("ref_logps",), paper="a citation", replace=True)
def mine(pairs, *, beta: float = 0.1):
    """A docstring."""
    global COUNT
    COUNT += 1
    CACHE[COUNT] = COUNT
    if beta < 0:
        raise ValueError(f"beta={beta} is negative")
    x = helper(beta) + thing(1) + decorated(1) + cached(1) + without_gradient(1) + cube(2) + part() + rule(1)
    later = [inner(y) for y in WORDS]
    return x * pairs.log_ratio_margin() + math.pi
'''

SAME = {
    "a docstring": ("A docstring.", "Another docstring."),
    "a docstring gone": ('    """A docstring."""\n', ""),
    "a helper's docstring": ("What a helper says.", "What a helper does."),
    "a class's docstring": ("A thing.", "Some thing."),
    "a comment": ("# a comment", "# another"),
    "lines": ("SCALE = 2.0", "\n\n\nSCALE = (\n    2.0\n)"),
    "an annotation": ("beta: float = 0.1", "beta: 'float' = 0.1"),
    "an error's words": ("is negative", "must not be negative"),
    "a citation": ("a citation", "another citation"),
    "what nothing calls": ("x - 1", "x - 2"),
    "a lambda alongside": ("x + 41", "x + 42"),
}
OTHER = {
    "the code": ("x * pairs", "x / pairs"),
    "a hyper-parameter's default": ("float = 0.1", "float = 0.2"),
    "a helper": ("inner(x) * SCALE", "inner(x) / SCALE"),
    "a helper's helper": ("x + 1  #", "x + 2  #"),
    "a number": ("SCALE = 2.0", "SCALE = 3.0"),
    "a list": ('"fine"', '"bad"'),
    "a method": ("self.apply(x) + self.offset", "self.apply(x) - self.offset"),
    "a class's field": ("offset: float = 1.0", "offset: float = 2.0"),
    "a base class": ("rate = 0.5", "rate = 0.6"),
    "a decorator": ("2 * function", "3 * function"),
    "what is decorated": ("x + 10", "x + 11"),
    "what is cached": ("x + 20", "x + 21"),
    "what a library's decorator wraps": ("x + 25", "x + 26"),
    "a closure's code": ("x**power", "-(x**power)"),
    "a closure's value": ("closing(3)", "closing(4)"),
    "a partial's keyword": ("x=30", "x=31"),
    "a lambda": ("x + 40", "x + 43"),
    "a method of the pairs": ("pairs.log_ratio_margin()", "pairs.chosen.log_ratio"),
}


def loaded(folder: Path, text: str):
    folder.mkdir(parents=True)
    path = folder / "mine.py"
    path.write_text(text)
    name = f"plug_in_{abs(hash(path)):x}"  # as a salted name of a module would be
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def identity(folder: Path, text: str = PLUGIN) -> str:
    return code_identity(loaded(folder, text).mine, through=(Pairs, Side))


@pytest.mark.parametrize("what", SAME)
def test_words_and_places_are_no_other_code(tmp_path, what):
    before, after = SAME[what]
    assert before in PLUGIN
    assert identity(tmp_path / "a") == identity(tmp_path / "b" / "c", PLUGIN.replace(before, after))


@pytest.mark.parametrize("what", OTHER)
def test_what_is_computed_makes_another_code(tmp_path, what):
    before, after = OTHER[what]
    assert PLUGIN.count(before) == 1
    assert identity(tmp_path / "a") != identity(tmp_path / "b", PLUGIN.replace(before, after))


def test_a_module_s_memory_is_no_part_of_it(tmp_path):
    """What functions put into globals differs from call to call."""
    module = loaded(tmp_path / "a", PLUGIN)
    before = code_identity(module.mine)
    module.CACHE["x"] = 1
    module.COUNT = 9
    assert code_identity(module.mine) == before
    module.SCALE = 9.0
    assert code_identity(module.mine) != before


def test_an_open_file_of_a_module_is_no_part_of_its_content(tmp_path):
    found = []
    for name in ("one.log", "another.log"):
        with (tmp_path / name).open("w") as log:

            def noted(pairs):
                log.write("x")
                return pairs

            found.append(code_identity(noted))
    assert found[0] == found[1]


def test_a_closure_s_memory_is_no_part_of_it():
    def make(scale):
        seen = []
        count = 0

        def remembering(x):
            nonlocal count
            count += 1
            seen.append(x)
            return scale * x

        return remembering

    one, two = make(2), make(2)
    one(1.0)
    assert code_identity(one) == code_identity(two) != code_identity(make(3))


def test_a_helper_in_another_file_counts(tmp_path, monkeypatch):
    found = set()
    for name, number in (("one", 1), ("two", 1), ("three", 2)):
        (tmp_path / name).mkdir()
        helper = f"helper_{name}"
        (tmp_path / name / f"{helper}.py").write_text(f"def f(x):\n    return x + {number}\n")
        monkeypatch.syspath_prepend(tmp_path / name)
        plugin = f"import {helper} as h\n\ndef mine(pairs):\n    return h.f(pairs)\n"
        found.add(identity(tmp_path / name / "plug", plugin))
    assert len(found) == 2


def test_an_import_inside_of_plo_counts(tmp_path, monkeypatch):
    from plo.losses import numbers

    plugin = (
        "def mine(pairs):\n    from plo.losses.numbers import largest_exponent\n    return largest_exponent(pairs)\n"
    )
    before = identity(tmp_path / "a", plugin)
    monkeypatch.setattr(numbers, "largest_exponent", lambda pairs: pairs)
    assert identity(tmp_path / "b", plugin) != before


def test_code_without_a_source_is_told_apart():
    found = set()
    for text in ("x + 1", "x + 1", "x + 2"):
        scope: dict = {}
        exec(f"def inner(x):\n    return {text}\ndef f(x):\n    return inner(x)", scope)
        found.add(code_identity(scope["f"]))
    assert len(found) == 2


def test_a_generator_s_closed_form_and_a_base_loss_are_parts_of_a_loss(monkeypatch):
    from plo.losses import GENERATORS

    before, inside = loss_identity(get_loss("bpo")), loss_identity(get_loss("wpo(base=bpo)"))
    assert (
        before != loss_identity(get_loss("bpo", lam=0.25)) != loss_identity(get_loss("bpo", generator="ba", lam=0.25))
    )
    sba = GENERATORS["sba"]
    facts = replace(sba.facts, closed_form=lambda log_R, *, lam=0.0, s=4.0: log_R)
    monkeypatch.setitem(GENERATORS._entries, "sba", replace(sba, facts=facts))
    assert loss_identity(get_loss("bpo")) != before and loss_identity(get_loss("wpo(base=bpo)")) != inside
    assert loss_identity(get_loss("wpo(base=dpo)")) != loss_identity(get_loss("wpo(base=ipo)"))


SCRIPT = """
from plo.losses import LOSSES, get_loss
from plo.losses.identity import loss_identity
from plo.scorers import SCORERS, get_scorer
for entry in LOSSES:
    print(entry.name, loss_identity(get_loss(entry.name)))
for name in ("tis_rank", "subsample", "attention_judge"):
    print(name, get_scorer(name).source)
"""


def test_another_process_finds_the_same(tmp_path):
    """With another salt of hashes, hence another order of sets and other addresses."""
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    there = dict(line.split() for line in run.stdout.splitlines())
    assert len(there) > 30
    for name, identity in there.items():
        is_scorer = name in ("tis_rank", "subsample", "attention_judge")
        assert identity == (get_scorer(name).source if is_scorer else loss_identity(get_loss(name))), name
    assert len({*there.values()}) == len(there)  # and no two are one


def test_fields_at_their_defaults_are_left_out():
    assert settings_identity(TrainConfig(max_grad_norm=1.0)) == {}  # the first default, whatever it is now
    assert settings_identity(TrainConfig()) == {"max_grad_norm": None}
    assert settings_identity(TrainConfig(lr=1e-3, steps=5, max_grad_norm=1.0), exclude={"steps"}) == {"lr": 1e-3}
    assert settings_identity(EvaluationConfig(suite=["repetition"], prompts=64)) == {"suite": ["repetition"]}
    assert settings_identity(ModelConfig(lora_targets=["q_proj"])) == {"lora_targets": ["q_proj"]}


def test_a_default_that_changes_does_not_give_two_settings_one_key():
    class Before(Section):
        rate: float = 1.0

    class After(Section):
        first_defaults: ClassVar = {"rate": 1.0}
        rate: float = 2.0
        new: int = 0

    assert settings_identity(Before()) == settings_identity(After(rate=1.0)) == {}
    assert settings_identity(Before(rate=2.0)) == settings_identity(After()) == {"rate": 2.0}


def test_a_global_that_is_empty_first_and_filled_by_the_module_counts(tmp_path):
    text = "TABLE = {}\nTABLE['a'] = 1.0\ndef f(x):\n    return x * TABLE['a']\n"
    keys = []
    for source in (text, text.replace("1.0", "2.0")):
        file = tmp_path / f"module{len(keys)}.py"
        file.write_text(source)
        module = {"__name__": "module", "__file__": str(file)}
        exec(compile(source, str(file), "exec"), module)
        keys.append(code_identity(module["f"]))
        module["TABLE"]["later"] = 3  # what it holds by chance does not
        assert code_identity(module["f"]) == keys[-1]
    assert keys[0] != keys[1]


def test_a_clones_digest_is_that_of_its_files(tmp_path):
    """`git status` writes .git/index; the clone holds the same."""
    (tmp_path / "sub/.git").mkdir(parents=True)
    (tmp_path / "sub/a.txt").write_text("a")
    before = content_digest(tmp_path)
    (tmp_path / "sub/.git/index").write_text("changed")
    assert content_digest(tmp_path) == before
    (tmp_path / "sub/.gitignore").write_text("x")
    assert content_digest(tmp_path) != before


@pytest.mark.parametrize("name", EVALUATIONS.names())
def test_how_a_subject_samples_is_no_part_of_an_evaluation(name):
    """Else every new engine would make recorded evaluations of all models those of another code."""
    walk = _Walk(())
    walk.value(EVALUATIONS[name].load())
    described = json.dumps(walk.parts)
    assert "class Policy" not in described and "class Vllm" not in described
