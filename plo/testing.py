"""Tests of a loss, for the test file of a package that registers one: the checks of `plo verify`, a test method each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from plo.losses import Loss, get_loss
from plo.pairs import MissingStatistic
from plo.verify import FAILED, Check, generator_checks_of, prepared
from plo.verify.direction import directions
from plo.verify.gradients import derivative, reach
from plo.verify.inputs import make_pairs, make_statistics, per_pair
from plo.verify.invariance import extremes, order, padding, split
from plo.verify.recovery import policy_recovery


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

    def test_values(self, configured: Loss) -> None:
        """The loss returns finite values of the right shape, in the dtype of `logps`."""

        def check() -> None:
            for dtype in (torch.float32, torch.float64):
                loss = prepared(configured).to(dtype)
                pairs = make_pairs(make_statistics(loss.needs, dtype), loss.needs)
                value = loss.evaluate(pairs)
                assert value.values.shape == (pairs.chosen.mask.shape if loss.level == "token" else (len(pairs),))
                assert value.values.dtype == dtype, f"values are {value.values.dtype} where logps are {dtype}"
                assert value.values.isfinite().all(), "values are not finite for ordinary pairs"

        self._run("test_values", configured, check)

    def test_needs(self, configured: Loss) -> None:
        """The loss reads every statistic that it needs, and no other."""

        def check() -> None:
            loss = prepared(configured)
            statistics = make_statistics(loss.needs)
            per_pair(loss, make_pairs(statistics, loss.needs))  # raises for one that `needs` does not name
            for need in loss.needs:
                fewer = [{name: values for name, values in side.items() if name != need} for side in statistics]
                others = [other for other in loss.needs if other != need]
                try:
                    per_pair(loss, make_pairs(fewer, others))
                except MissingStatistic as missing:
                    assert need.removeprefix("column:") in str(missing), missing
                else:
                    raise AssertionError(f"{loss.name} needs {need!r} and does not read it: leave it out of needs.")

        self._run("test_needs", configured, check)

    def test_derivative(self, configured: Loss) -> None:
        """The gradient is the derivative, but for what the loss declares as detached."""
        self._verify("test_derivative", configured, derivative)

    def test_gradient_reach(self, configured: Loss) -> None:
        """Gradient reaches the policy's statistics alone: no constant, nothing off the mask."""
        self._verify("test_gradient_reach", configured, reach)

    def test_padding(self, configured: Loss) -> None:
        """Padding changes neither value nor gradient."""
        self._verify("test_padding", configured, padding)

    def test_permutation(self, configured: Loss) -> None:
        """The order of the pairs does not matter."""
        self._verify("test_permutation", configured, order)

    def test_batch_split(self, configured: Loss) -> None:
        """A pair has the same loss alone and in a batch, so that gradient accumulation is exact."""
        self._verify("test_batch_split", configured, split)

    def test_extremes(self, configured: Loss) -> None:
        """Value and gradient are finite at log-ratios of 1000 nats, in float32 and in float64."""
        self._verify("test_extremes", configured, extremes)

    def test_direction(self, configured: Loss) -> None:
        """The loss falls as the chosen response gets likelier and rises as the rejected one does."""
        self._verify("test_direction", configured, directions)

    def test_generator(self, configured: Loss) -> None:
        """The Bregman generator, where the loss has one, is convex and its closed form is its definition."""
        self._verify("test_generator", configured, generator_checks_of)

    def test_recovery(self, configured: Loss) -> None:
        """Minimising the population loss recovers the optimal policy of the preference model that the loss assumes."""
        self._verify("test_recovery", configured, policy_recovery)

    def _verify(self, test: str, loss: Loss, check: Callable[[Loss], Check | list[Check]]) -> None:
        def run() -> None:
            found = check(prepared(loss))
            for each in found if isinstance(found, list) else [found]:
                assert each.result != FAILED, (
                    f"{each.name} of {loss.name}: {each.measured}. {each.where}. {each.remedy}"
                )

        self._run(test, loss, run)

    def _run(self, test: str, loss: Loss, check: Callable[[], None]) -> None:
        reason = self.exceptions.get(test) or self.exceptions.get((loss.name, test))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if not reason:
                return check()
            try:
                check()
            except Exception:
                return None
        raise AssertionError(f"{loss.name} passes {test}, which is excepted ({reason}): remove the exception.")
