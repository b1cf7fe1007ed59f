"""`Variant` is a loss with its hyper-parameters, the token scorer that makes its weights, and settings of its own."""

from collections.abc import Callable, Mapping
from typing import Any

from plo.config import TrainConfig
from plo.configured import HyperParameterError, changed, full_name, resolve_params, shown
from plo.losses import LOSSES, Loss, LossError, LossSum
from plo.losses.get import Spec, find_loss, find_terms
from plo.losses.identity import loss_identity
from plo.losses.loss import sum_name
from plo.origin import Origin
from plo.pairs import Pairs
from plo.registry import Entry, RegistryError
from plo.scorers.recipe import RECIPES, Recipe
from plo.scorers.scorer import Scorer, get_scorer
from plo.values import read_value

AT = " @ "  # between a loss and the settings of a variant's own: of training, and `data` and `flip`
ORIGIN = ("data", "flip")


class Term:
    """One loss of a variant with the scorer that makes its weights.

    Attributes:
        entry: registry entry of the loss, or of the recipe.
        name: registered name plus the hyper-parameters that differ from their defaults.
        params: every hyper-parameter: of a recipe those of loss and scorer, of a loss that needs weights also `scorer`.
        loss: the configured loss; it has the term's name.
        scorer: the token scorer; None where the loss needs no weights.
    """

    def __init__(self, entry: Entry[Any], params: Mapping[str, Any]):
        self.entry, self.recipe = entry, isinstance(entry.load(), Recipe)
        if self.recipe:
            self.params, self.loss, self.scorer = _from_recipe(entry, params)
            self.name = full_name(entry, self.params)
        else:
            self.params, self.loss, self.scorer = _from_loss(entry, params)
            self.name = self.loss.name
            if self.scorer is not None and self.scorer.name != entry.facts.scorer:
                inner = self.name.removeprefix(entry.name)[1:-1]
                self.name = f"{entry.name}({', '.join(filter(None, [f'scorer={self.scorer.name}', inner]))})"
        self.loss.name = self.name

    @property
    def given(self) -> dict[str, Any]:
        """The hyper-parameters that differ from their defaults, and `scorer` where the loss needs token weights."""
        own = self.params if self.recipe else self.loss.params
        scorer = {} if self.scorer is None or self.recipe else {"scorer": self.scorer}
        return {**changed(self.entry, own), **scorer}

    @property
    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter by the name that `with_params` takes, those of the scorer as `scorer.gamma`."""
        inner = {} if self.scorer is None or self.recipe else self.scorer.params
        return {**self.params, **{f"scorer.{name}": value for name, value in inner.items()}}

    def with_params(self, changes: Mapping[str, Any]) -> "Term":
        """Return the same term with some of its `settings` changed; the others keep their values.

        Raises:
            LossError, HyperParameterError: it has no such hyper-parameter, or they do not fit each other.
        """
        params, inner = self.given, {}
        for name, value in changes.items():
            if name.startswith("scorer."):
                inner[name.removeprefix("scorer.")] = value
            else:
                params[name] = value
        if inner:
            params["scorer"] = get_scorer(params["scorer"]).with_params(inner)
        return Term(self.entry, params)

    @property
    def source(self) -> str:
        """Hash that identifies the term: code and hyper-parameters of loss and scorer."""
        return loss_identity(self.loss, self.params, None if self.scorer is None else self.scorer.source)


class Variant:
    """A loss with its hyper-parameters, its token scorer and its own training settings: a row of a comparison.

    Attributes:
        terms: ((coefficient, Term), ...), one unless the loss is a sum.
        train: training settings that differ from the experiment's, such as {"lr": 1e-5}.
        origin: where its training pairs come from.
        name: the term's name, or that of the sum, and the settings: "twdpo(scorer=subsample)", "dpo + 0.2*sft @ lr=1e-05",
            "dpo @ data=iterated(2) lr=1e-05".
        params: every hyper-parameter of loss, scorer and recipe; of a sum, those of each term by its name.
        loss: what is trained; a call of the variant calls it.
        scorer: makes the token weights; None where no loss needs them.

    Raises:
        LossError: the terms need weights of different scorers.
    """

    def __init__(
        self,
        terms: list[tuple[float, Term]],
        train: Mapping[str, Any] | None = None,
        origin: Origin = Origin(),  # noqa: B008
    ):
        self.terms, self.origin = tuple((float(coefficient), term) for coefficient, term in terms), origin
        loss = sum_name((coefficient, term.name) for coefficient, term in self.terms)
        self.train = _checked_train(loss, train or {})
        self.name = _named(loss, {**origin.settings, **dict(sorted(self.train.items()))})
        single = len(self.terms) == 1 and self.terms[0][0] == 1
        self.loss: Loss = terms[0][1].loss if single else LossSum([(c, term.loss) for c, term in self.terms])
        self.params: dict[str, Any] = terms[0][1].params if single else {term.name: term.params for _, term in terms}
        scorers = {term.scorer.name: term.scorer for _, term in self.terms if term.scorer is not None}
        if len(scorers) > 1:
            raise LossError(
                f"The terms of {self.name!r} need different token weights ({', '.join(scorers)}): one scorer a sum."
            )
        self.scorer: Scorer | None = next(iter(scorers.values()), None)

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics that the loss needs in addition to `logps`."""
        return self.loss.needs

    @property
    def registered_name(self) -> str:
        """Registered name of the loss or recipe; of a sum, the sum's name."""
        return self.terms[0][1].entry.name if self.loss.entry is not None else self.loss.name

    @property
    def row(self) -> str:
        """Name that neither hyper-parameters nor training settings change: the registered one, and the origin of the pairs."""
        return _named(self.registered_name, self.origin.settings)

    @property
    def ceiling(self) -> bool:
        """True if a loss of it reads the truth that a task knows: tables show it as an upper bound, without a rank."""
        return any(getattr(term.entry.facts, "ceiling", False) for _, term in self.terms)

    @property
    def source(self) -> str:
        """Hash that identifies the variant; of a sum, those of its terms, a line each."""
        return "\n".join(term.source for _, term in self.terms)

    def each_term(self, change: "Callable[[Term], Term | Variant]") -> "Variant":
        """Return the variant with every term changed; a term may become a sum."""
        terms = [(coefficient, change(term)) for coefficient, term in self.terms]
        return Variant(
            [
                (coefficient * inner, part)
                for coefficient, new in terms
                for inner, part in (new.terms if isinstance(new, Variant) else [(1.0, new)])
            ],
            self.train,
            self.origin,
        )

    def on(self, origin: Origin) -> "Variant":
        """Return the variant with training pairs of another origin."""
        return Variant(list(self.terms), self.train, origin)

    def __call__(self, pairs: Pairs) -> Any:
        """Return the loss of the pairs, whose weights are given: `loss(pairs)`."""
        return self.loss(pairs)

    def __repr__(self) -> str:
        return f"Variant({self.name})"


def get_variant(spec: "Spec | Variant", /, **params: Any) -> Variant:
    """Return a configured loss with the token scorer that makes its weights.

    Args:
        spec: anything `get_loss` takes, with `scorer=...` for a loss that needs weights; or a recipe's name. Training
            settings of its own follow an @, as in "dpo(beta=0.2) @ lr=1e-5", or are the mapping `train`. `data` and `flip`
            among them say where its training pairs come from, as in "dpo @ data=iterated(2) flip=0.2".
        params: hyper-parameters, `scorer` among them: a name, "position_decay(gamma=0.9)", or a mapping.

    Raises:
        ConfigError: a training setting does not exist or has a wrong value.
        RegistryError: no such loss, recipe or scorer.
        LossError, HyperParameterError: a hyper-parameter that it does not have, or a spec that cannot be read.
        OriginError: `data` or `flip` has a wrong value.

    Example:
        >>> variant = get_variant("twdpo(scorer=position_decay(gamma=0.9), beta=0.2)")
        >>> variant.needs, variant.scorer.name, variant.params["beta"]
        (('ref_logps', 'weights'), 'position_decay(gamma=0.9)', 0.2)
        >>> get_variant("d2po", gamma=0.9).params
        {'gamma': 0.9, 'beta': 0.1, 'loss_type': 'sigmoid', 'kl': 0.0}
    """
    if isinstance(spec, Variant | Loss):
        if params:
            raise LossError(f"{spec.name!r} is configured already: set hyper-parameters where it is made.")
        if isinstance(spec, Variant):
            return spec
        return Variant(
            [(coefficient, Term(loss.entry, loss.params)) for coefficient, loss in spec.terms if loss.entry is not None]
        )
    spec, params, train = _split_train(spec, params)
    origin = Origin.read(**{name: train.pop(name) for name in ORIGIN if name in train})
    found = find_terms(spec, params, _find)
    return Variant([(coefficient, Term(entry, own)) for coefficient, entry, own in found], train, origin)


def _find(loss: str | Callable[..., Any]) -> Entry[Any]:
    """Return the registry's entry of a recipe or a loss."""
    if not isinstance(loss, str) or (loss in LOSSES and loss not in RECIPES):
        return find_loss(loss)
    if loss not in RECIPES:
        raise LOSSES.unknown(loss, others=RECIPES.names())
    if loss in LOSSES:
        taken = f"of a loss ({LOSSES[loss].origin}) and of a recipe"
        raise RegistryError(f"{loss!r} is the name {taken}: register one of them under another name.")
    return RECIPES[loss]


def get_loss(spec: "Spec | Variant", /, **params: Any) -> Loss:
    """Return the loss of a variant, to be called on `Pairs` that have its weights; a `Loss` is returned as it is.

    Raises:
        RegistryError, LossError, HyperParameterError: as `get_variant`.

    Example:
        >>> get_loss("tis_dpo").needs
        ('ref_logps', 'weights')
    """
    return spec if isinstance(spec, Loss) and not params else get_variant(spec, **params).loss


def _from_recipe(entry: Entry[Any], params: Mapping[str, Any]) -> tuple[dict[str, Any], Loss, Scorer]:
    if "scorer" in params:
        raise LossError(f"The recipe {entry.name!r} takes no scorer={params['scorer']!r}: it is {entry.load()!r}.")
    try:
        resolved = resolve_params("recipe", entry, params)
    except HyperParameterError as error:
        raise LossError(str(error)) from None
    return resolved, *entry.load()(**resolved)


def _from_loss(entry: Entry[Any], params: Mapping[str, Any]) -> tuple[dict[str, Any], Loss, Scorer | None]:
    own = dict(params)
    scorer = own.pop("scorer", None)
    loss = Loss(entry, own)
    if "weights" in loss.needs:
        configured = get_scorer(entry.facts.scorer if scorer is None else scorer)
        return {**loss.params, "scorer": configured.name}, loss, configured
    if scorer is not None:
        raise LossError(f"The loss {entry.name!r} takes no scorer={scorer!r}: only losses that need token weights do.")
    return loss.params, loss, None


def _split_train(spec: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return a spec without training settings, the hyper-parameters, and the training settings."""
    own = dict(params)
    train: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        if "name" in spec:
            own = {**{key: value for key, value in spec.items() if key != "name"}, **own}
            spec = spec["name"]
        elif len(spec) == 1 and isinstance(inner := next(iter(spec.values())), Mapping | None):
            own, spec = {**(inner or {}), **own}, next(iter(spec))
    if isinstance(spec, str) and AT in spec:
        spec, _, text = spec.partition(AT)
        parts = [part.partition("=") for part in text.split()]
        if not all(name and value for name, _, value in parts):
            raise LossError(
                f"Cannot read the training settings {text!r} of {spec!r}: write {spec}{AT}lr=1e-5 epochs=2."
            )
        train = {name: read_value(value) for name, _, value in parts}
    given = own.pop("train", None) or {}
    if not isinstance(given, Mapping):
        raise LossError(f"train={given!r} of {spec!r} must map training settings to values, as in train: {{lr: 1e-5}}.")
    return spec, own, {**train, **given}


def _named(loss: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a loss with settings of its own."""
    parts = {name: value if name == "data" else shown(value) for name, value in settings.items()}
    text = " ".join(f"{name}={value}" for name, value in parts.items())
    return f"{loss}{AT}{text}" if text else loss


def _checked_train(loss: str, train: Mapping[str, Any]) -> dict[str, Any]:
    whole = (
        {"batch_size": train.get("micro_batch_size")} if "batch_size" not in train else {}
    )  # the experiment has its own
    given = {name: value for name, value in {**whole, **train}.items() if value is not None}
    config = TrainConfig.of(given, f"The training settings of {loss}")
    return {name: getattr(config, name) for name in train}
