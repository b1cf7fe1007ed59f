"""Bregman generators: strictly convex h(R) on R > 0, each of which makes a preference loss (BPO, TBPO).

    L(R) = h'(R) R - h(R) - h'(1/R),     R = exp(log R) the model's ratio, > 1 where it prefers the rejected
    side

An affine term of h changes L by a constant alone, and L(1) = -h(1) for every h. The weight of the gradient at
R = 1, dL/dR, is lr .5, kliep 2, lsif 4, ba 2 (1 + lam), sba 2 / s. Source: BPO, arXiv 2505.19601.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import torch
from pydantic import AfterValidator
from torch import Tensor
from torch.nn.functional import softplus

from plo.errors import PloError
from plo.registry import Registry, check_signature, hyper_parameters

H = TypeVar("H", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class GeneratorFacts:
    """Facts that `register_generator` declares of a generator."""

    closed_form: Callable[..., Tensor] | None = None
    paper: str = ""


GENERATORS = Registry("Bregman generator", group="plo.generators", facts=GeneratorFacts)


class GeneratorError(PloError, ValueError):
    """A generator cannot be configured. The message names it and the remedy."""


class Generator:
    """A Bregman generator h with its hyper-parameters set, which a loss calls.

    Args:
        h: a function h(R, *, hyper-parameters) of R > 0 of any shape, one value per entry, twice
            differentiable.
        closed_form: L as a function of log R with hyper-parameters of the same names; None: by autodiff from
            h.
        name: shown in the name of the loss.
        params: hyper-parameters of h that differ from its defaults.

    Raises:
        ValueError: h has no such hyper-parameter.

    Example:
        >>> square = Generator(lambda R, *, p=2.0: R**p, p=3.0)   # h' R - h - h'(1/R) = 2 R^3 - 3 / R^2
        >>> square.loss(torch.zeros(1))
        tensor([-1.])
    """

    def __init__(
        self,
        h: Callable[..., Tensor],
        closed_form: Callable[..., Tensor] | None = None,
        name: str | None = None,
        **params: Any,
    ):
        known = hyper_parameters(h)
        for key in params:
            if key not in known:
                has = f"It has: {', '.join(known)}." if known else "It has none."
                raise GeneratorError(f"The generator {name or h!r} has no hyper-parameter {key!r}. {has}")
        self._h, self.closed_form, self.params = h, closed_form, params
        self._base_name = name or getattr(h, "__name__", type(h).__name__)

    @property
    def name(self) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self._base_name}({shown})" if shown else self._base_name

    def __repr__(self) -> str:
        return f"Generator({self.name})"

    @property
    def takes(self) -> tuple[str, ...]:
        """Hyper-parameters of h, set or not."""
        return tuple(hyper_parameters(self._h))

    @property
    def free(self) -> tuple[str, ...]:
        """Hyper-parameters not set yet."""
        bound = {*self.params, *getattr(self._h, "keywords", {})}  # keywords: those of a functools.partial
        return tuple(key for key in self.takes if key not in bound)

    def configured(self, **params: Any) -> "Generator":
        """Return the same generator with these hyper-parameters."""
        return Generator(self._h, self.closed_form, self._base_name, **{**self.params, **params})

    def h(self, R: Tensor) -> Tensor:
        """Return h(R), the shape of R."""
        return self._h(R, **self.params)

    def loss(self, log_R: Tensor) -> Tensor:
        """Return L at R = exp(log R): the shape and dtype of log R (nats), differentiable."""
        if self.closed_form is None:
            return self.definition(log_R)
        return self.closed_form(log_R, **self.params)

    def definition(self, log_R: Tensor) -> Tensor:
        """Return h'(R) R - h(R) - h'(1/R) by autodiff; R itself is formed, so float32 overflows at |log R| > 88."""
        R = log_R.exp()
        value, slope = self._value_and_slope(R)
        _, slope_at_inverse = self._value_and_slope((-log_R).exp())
        return slope * R - value - slope_at_inverse

    def _value_and_slope(self, R: Tensor) -> tuple[Tensor, Tensor]:
        # torch.func, not autograd.grad: it differentiates under no_grad too, and stays differentiable itself
        value, pull_back = cast("tuple[Tensor, Callable[[Tensor], tuple[Tensor]]]", torch.func.vjp(self.h, R))
        if value.shape != R.shape:
            raise GeneratorError(
                f"The generator {self.name!r} returned {tuple(value.shape)} for R of shape {tuple(R.shape)}: "
                f"h must be elementwise, one value per entry."
            )
        return value, pull_back(torch.ones_like(value))[0]


Spec = str | Generator | Callable[..., Tensor]


def register_generator(
    name: str, *, closed_form: Callable[..., Tensor] | None = None, paper: str = "", replace: bool = False
) -> Callable[[H], H]:
    """Register a function h(R, *, hyper-parameters) as a Bregman generator.

    Args:
        name: what users write, `get_loss("bpo", generator=name)`.
        closed_form: L as a function of log R, with the hyper-parameters of h: faster, and finite where R
            overflows. It must equal the definition, its constant L(R=1) = -h(1) included.
        paper: arXiv number or citation.

    Raises:
        RegistryError: the name is taken.

    Example:
        >>> @register_generator("mine")
        ... def h(R, *, p: float = 2.0):
        ...     return R**p
    """
    add = GENERATORS.register(name, facts=GeneratorFacts(closed_form, paper), replace=replace)

    def register(h: H) -> H:
        check_signature("Bregman generator", name, h, given="R")
        return add(h)

    return register


def get_generator(spec: Spec, *, of: Callable[..., Any] | None = None, **offered: Any) -> Generator:
    """Return a configured generator.

    Args:
        spec: a registered name, a `Generator`, or a function h(R); `functools.partial(h, p=3.0)` sets what a
            loss has no hyper-parameter for.
        of: the loss that calls the generator. Its `lam` and `s` go to a generator that has them and has not set them.
        offered: the loss's hyper-parameters for the generator.

    Raises:
        RegistryError: no generator of that name.
        GeneratorError: `offered` has a value that is not the default of `of`, and the generator cannot take it:
            a setting without effect is a mistake.
    """
    if isinstance(spec, str):
        entry = GENERATORS[spec]
        generator = Generator(entry.load(), entry.facts.closed_form, spec)
    else:
        generator = spec if isinstance(spec, Generator) else Generator(spec)
    defaults = {key: p.default for key, p in hyper_parameters(of).items()} if of else {}
    for key, value in offered.items():
        if key not in generator.free and (key not in defaults or value != defaults[key]):
            raise GeneratorError(
                f"{key}={value} has no effect with the generator {generator.name!r}, "
                f"{'which sets it itself' if key in generator.takes else 'which has none'}: "
                f"leave {key} at its default, or take a generator that has it ({_that_have(key)})."
            )
    return generator.configured(**{key: value for key, value in offered.items() if key in generator.free})


def check_generator(spec: Spec, *, of: Callable[..., Any], **offered: Any) -> None:
    """Raise what the generator would raise in the first batch (an unknown name, ba with lam <= -1, ...)."""
    get_generator(spec, of=of, **offered).loss(torch.zeros(2))


def _known(spec: Any) -> Any:
    if isinstance(spec, str):
        _ = GENERATORS[spec]
    return spec


GeneratorSpec = Annotated[Spec, AfterValidator(_known)]


def box_cox(log_R: Tensor, a: float) -> Tensor:
    """Return (R^a - 1) / a as a function of log R (at a = 0 its limit, log R); its slope in log R is R^a."""
    if abs(a) < 1e-20:  # float32 would underflow in a * log R; the next term of the series is below rounding
        return log_R
    if abs(a) < 1 / 16:
        return torch.expm1(a * log_R) / a
    # here exp does not cancel, and expm1's backward (result + 1) would lose R^a below 1e-7 in float32
    return (torch.exp(a * log_R) - 1) / a


def _check_lam(lam: float) -> None:
    if lam <= -1:
        raise GeneratorError(f"lam={lam} of the generator 'ba' must be > -1, where h is convex; sba takes any.")


def _check_s(s: float) -> None:
    if s <= 0:
        raise GeneratorError(f"s={s} of the generator 'sba' must be > 0: 4 gives DPO's gradient weight at R = 1.")


def _lr(log_R: Tensor) -> Tensor:
    return softplus(log_R)


def _kliep(log_R: Tensor) -> Tensor:
    return log_R.exp() + log_R


def _lsif(log_R: Tensor) -> Tensor:
    return (2 * log_R).exp() - 2 * (-log_R).exp() + 1


def _ba(log_R: Tensor, *, lam: float = 0.5) -> Tensor:
    _check_lam(lam)
    if lam == 0:
        return _kliep(log_R)
    return (1 + lam) * (box_cox(log_R, 1 + lam) + box_cox(log_R, -lam))


def _sba(log_R: Tensor, *, lam: float = 0.0, s: float = 4.0) -> Tensor:
    _check_s(s)
    return (box_cox(log_R, 1 + lam) + box_cox(log_R, -lam)) / s


@register_generator("lr", closed_form=_lr, paper="2505.19601")
def lr(R: Tensor) -> Tensor:
    """Generate the logistic loss, which makes BPO into DPO.

        h = (R log R - (1+R) log(1+R)) / 2;  L = log(1+R)

    The loss saturates as R -> 0.
    """
    return (R * R.log() - (1 + R) * R.log1p()) / 2


@register_generator("kliep", closed_form=_kliep, paper="2505.19601")
def kliep(R: Tensor) -> Tensor:
    """Generate the loss of KLIEP, the fit of a density ratio by the Kullback-Leibler divergence.

        h = R log R - R;  L = R + log R

    The loss is unbounded below as R -> 0.
    """
    return R * R.log() - R


@register_generator("lsif", closed_form=_lsif, paper="2505.19601")
def lsif(R: Tensor) -> Tensor:
    """Generate the loss of least-squares importance fitting of a density ratio.

        h = (R-1)^2;  L = R^2 - 2/R + 1

    The loss is unbounded below as R -> 0. The paper prints R^2 - 2R, which is not L of this h and has no gradient at R = 1, where training starts.
    """
    return (R - 1).square()


@register_generator("ba", closed_form=_ba, paper="2505.19601")
def ba(R: Tensor, *, lam: float = 0.5) -> Tensor:
    """Generate the loss of Basu's power divergence of degree lam > -1.

        h = (R^(1+lam) - R) / lam;  L = R^(1+lam) - ((1+lam)/lam) R^-lam + 1/lam

    lam = 0 is `kliep`: the limit is R log R, of which kliep's h takes R, so the value there (not the
    gradient) jumps by 1.

    Raises:
        ValueError: lam <= -1.
    """
    _check_lam(lam)
    return kliep(R) if lam == 0 else R * box_cox(R.log(), lam)


@register_generator("sba", closed_form=_sba, paper="2505.19601")
def sba(R: Tensor, *, lam: float = 0.0, s: float = 4.0) -> Tensor:
    """Generate the loss of the scaled Basu divergence for any lam; with s of 4 it has DPO's weight at R of 1.

        h = (R^(1+lam) - R) / (s lam (1+lam)),  s > 0

    L = R^(1+lam) / (s (1+lam)) - R^-lam / (s lam) + 1 / (s lam (1+lam)), and (R + log R - 1) / s at lam = 0
    and -1: SBA(lam) = SBA(-1-lam). Unbounded below as R -> 0 for lam >= 0 or <= -1.

    The h here has (R - 1) / (s (1+lam)) taken off, which L does not see (it is affine and 0 at R = 1) and
    without which there is no limit at lam = -1: the result is the power divergence, 0 with slope 0 at R = 1.

    Raises:
        ValueError: s <= 0.
    """
    _check_s(s)
    log_R = R.log()
    if lam > -0.5:  # the same function twice: each form is accurate at its own limit
        return (R * box_cox(log_R, lam) - R + 1) / (s * (1 + lam))
    return (box_cox(log_R, 1 + lam) - R + 1) / (s * lam)


def _that_have(key: str) -> str:
    names = [entry.name for entry in GENERATORS if key in hyper_parameters(entry.load())]
    return ", ".join(names) or "none of the registered ones does"
