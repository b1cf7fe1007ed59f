"""Reading of the loss or generator that a command line names."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from plo.configured import read_call
from plo.losses import GENERATORS, LOSSES, Loss, LossError, get_loss
from plo.losses.generators import Generator, get_generator
from plo.registry import Entry, load_plugin


def load_loss(spec: str, generator: str | None = None, get: Callable[..., Loss] = get_loss) -> Loss:
    """Return the loss of a spec, or of "my_file.py:my_loss(beta=0.2)", registered in the file or a plain function.

    Args:
        generator: a generator's name, "sba(lam=0.5)" or "my_file.py:my_h", for a loss that takes one.
        get: makes a loss of a name and hyper-parameters; `plo.get_loss` also knows recipes and scorers.

    Raises:
        LossError, HyperParameterError, RegistryError: what `get_loss` raises, or the file has nothing of that name.
    """
    params = {} if generator is None else {"generator": load_generator(generator)}
    if ".py:" not in spec:
        return get(spec, **params)
    target, own = _of_file(spec, LOSSES)
    return get(target, **{**own, **params})


def load_generator(spec: str) -> str | Generator:
    """Return a registered name as it is, and a `Generator` for one with hyper-parameters or of a file."""
    if spec in GENERATORS:
        return spec
    target, own = _of_file(spec, GENERATORS) if ".py:" in spec else read_call(spec)
    return get_generator(target).configured(**own) if own or not isinstance(target, str) else target


def _of_file(spec: str, registry: Iterable[Entry[Any]]) -> tuple[str | Callable[..., Any], dict[str, Any]]:
    """Return the registered name or the function that "file.py:name(key=value)" names, and its hyper-parameters."""
    path, text = spec.split(".py:", 1)
    path = Path(f"{path}.py").resolve()
    module = load_plugin(path)
    name, params = read_call(text)
    in_file = {entry.name: entry for entry in registry if entry.origin.startswith(f"{path}:")}
    if name in in_file:
        return name, params
    target = getattr(module, name, None)
    if not callable(target):
        functions = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise LossError(
            f"{path.name} has no {name!r}. It has: {', '.join(sorted({*in_file, *functions})) or 'nothing'}."
        )
    return target, params
