"""Tests of a loss, for the test file of a package that registers one: the checks of `plo verify`, a test method each."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from plo.losses import Loss, get_loss
from plo.pairs import MissingStatistic, Pairs
from plo.verify import FAILED, Check, generator_checks_of, prepared
from plo.verify.direction import directions
from plo.verify.gradients import derivative, reach
from plo.verify.inputs import make_pairs, make_statistics, per_pair
from plo.verify.invariance import extremes, order, padding, split
from plo.verify.recovery import policy_recovery
from plo.verify.state import state

Test = Callable[["LossTester", Loss], None]


def _verify(*checks: Callable[[Loss], Check | list[Check]]) -> Callable[[Test], Test]:
    """Make a test pass where its body and the checks of `plo verify` do; one that `exceptions` names must fail."""

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def run(self: "LossTester", configured: Loss) -> None:
            name, loss = test.__name__, configured.name
            reason = self.exceptions.get(name) or self.exceptions.get((loss, name))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                try:
                    test(self, configured)
                    for made in [check(prepared(configured)) for check in checks]:
                        for each in made if isinstance(made, list) else [made]:
                            assert each.result != FAILED, (
                                f"{each.name} of {loss}: {each.measured}. {each.where}. {each.remedy}"
                            )
                except Exception:
                    if reason:
                        return
                    raise
            if reason:
                raise AssertionError(f"{loss} passes {name}, which is excepted ({reason}): remove the exception.")

        return run

    return decorate


def _read(loss: Loss, pairs: Pairs) -> None:
    """Let a loss read all that it reads of pairs, for its values and for its state."""
    per_pair(loss, pairs)
    for _, term in loss.terms:
        term.observe(pairs)


class LossTester:
    """Tests that a preference loss should pass. Inherit them; pytest runs each test for each of the losses.

    Attributes:
        loss: what `get_loss` takes: a registered name or a function of `Pairs`.
        params: hyper-parameters, a mapping for each configuration to test.
        exceptions: {name of a test: reason} for tests that the loss fails by design, or {(name of the loss, name of the
            test): reason}. Such a test must fail: an exception that is not needed is an error.

    Example:
        `tests/test_my_loss.py`, run by `pytest`:

        >>> from plo.testing import LossTester
        >>> class TestHinge(LossTester):
        ...     loss = "hinge"
        ...     params = [{}, {"beta": 0.5}]
        >>> TestHinge().test_direction(TestHinge().losses()[1])
    """

    loss: ClassVar[Any] = None
    params: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    exceptions: ClassVar[Mapping[str | tuple[str, str], str]] = {}

    def losses(self) -> list[Loss]:
        """Return the losses to test: `loss` with each of `params`. Override it to test losses of several names."""
        if self.loss is None:
            raise TypeError(f"{type(self).__name__} names no loss to test: set `loss`, or override `losses`.")
        return [get_loss(self.loss, **params) for params in self.params]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run every test for each loss; pytest calls this."""
        if "configured" in metafunc.fixturenames:
            losses = self.losses()
            metafunc.parametrize("configured", losses, ids=[loss.name for loss in losses])

    @_verify()
    def test_values(self, configured: Loss) -> None:
        """The loss returns finite values of the right shape, in the dtype of `logps`."""
        for dtype in (torch.float32, torch.float64):
            loss = prepared(configured).to(dtype)
            pairs = make_pairs(make_statistics(loss.needs, dtype), loss.needs)
            value = loss.evaluate(pairs)
            assert value.values.shape == (pairs.chosen.mask.shape if loss.level == "token" else (len(pairs),))
            assert value.values.dtype == dtype, f"values are {value.values.dtype} where logps are {dtype}"
            assert value.values.isfinite().all(), "values are not finite for ordinary pairs"

    @_verify()
    def test_needs(self, configured: Loss) -> None:
        """The loss reads every statistic that it needs, and no other."""
        loss = prepared(configured)
        statistics = make_statistics(loss.needs)
        _read(loss, make_pairs(statistics, loss.needs))  # raises for one that `needs` does not name
        for need in loss.needs:
            fewer = [{name: values for name, values in side.items() if name != need} for side in statistics]
            others = [other for other in loss.needs if other != need]
            try:
                _read(loss, make_pairs(fewer, others))
            except MissingStatistic as missing:
                assert need.removeprefix("column:").removeprefix("completion:") in str(missing), missing
            else:
                raise AssertionError(f"{loss.name} needs {need!r} and does not read it: leave it out of needs.")

    @_verify(derivative)
    def test_derivative(self, configured: Loss) -> None:
        """The gradient is the derivative, but for what the loss declares as detached."""

    @_verify(reach)
    def test_gradient_reach(self, configured: Loss) -> None:
        """Gradient reaches the policy's statistics alone: no constant, nothing off the mask."""

    @_verify(padding)
    def test_padding(self, configured: Loss) -> None:
        """Padding changes neither value nor gradient."""

    @_verify(order)
    def test_permutation(self, configured: Loss) -> None:
        """The order of the pairs does not matter."""

    @_verify(split)
    def test_batch_split(self, configured: Loss) -> None:
        """A pair has the same loss alone and in a batch, so that gradient accumulation is exact."""

    @_verify(state)
    def test_state(self, configured: Loss) -> None:
        """The state of a loss depends on the pairs of a step alone, however they are divided, and only updates change it."""

    @_verify(extremes)
    def test_extremes(self, configured: Loss) -> None:
        """Value and gradient are finite at log-ratios of 1000 nats, in float32 and in float64."""

    @_verify(directions)
    def test_direction(self, configured: Loss) -> None:
        """The loss falls as the chosen response gets likelier and rises as the rejected one does."""

    @_verify(generator_checks_of)
    def test_generator(self, configured: Loss) -> None:
        """The Bregman generator, where the loss has one, is convex and its closed form is its definition."""

    @_verify(policy_recovery)
    def test_recovery(self, configured: Loss) -> None:
        """Minimising the population loss recovers the optimal policy of the preference model that the loss assumes."""
