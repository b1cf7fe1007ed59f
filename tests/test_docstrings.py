"""Examples in docstrings are run: `>>>` lines of every module of plo, each with the public names and torch at hand."""

import doctest
import importlib
import sys
from pathlib import Path

import pytest
import torch

import plo
from plo.registry import Registry

ROOT = Path(plo.__file__).parent
FILES = [path for folder in (ROOT, *ROOT.iterdir()) if folder.is_dir() for path in folder.rglob("*.py")]
MODULES = sorted(
    {
        ".".join(("plo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in FILES
        if ">>> " in path.read_text(encoding="utf-8")
    }
)
SKIPPED = {  # module with `# doctest: +SKIP`: why
    "plo.data.load": "reads a data set with the tokenizer of a model",
    "plo.embedded": "loads the weights of the embedded model",
    "plo.trl.trainer": "trains; tests/trl runs the same lines",
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name, monkeypatch, tmp_path):
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # for what an example writes
    for loaded in [each for key, each in sys.modules.items() if key.startswith("plo.")]:
        for registry in [each for each in vars(loaded).values() if isinstance(each, Registry)]:
            monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    names = {"torch": torch, "Tensor": torch.Tensor, **{name: getattr(plo, name) for name in plo.__all__}}
    found = [test for test in doctest.DocTestFinder().find(module, extraglobs=names) if test.examples]
    assert found, f"{name} has examples where doctest does not look"
    skipped = [example.source for test in found for example in test.examples if example.options.get(doctest.SKIP)]
    assert bool(skipped) == (name in SKIPPED), f"{name} skips {skipped}: give the reason in SKIPPED"
    for test in found:
        output: list[str] = []
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.append)
        assert not result.failed, "".join(output)


def test_examples_are_found_in_every_folder():
    assert {"plo.losses.get", "plo.evals.judges.judge", "plo.registry", "plo.testing"} <= set(MODULES)
