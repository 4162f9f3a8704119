"""Smoothed losses ``E[L(RR(w))]`` and their gradients, exact and estimated, by name."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import numpy as np

from ..formats.quantizer import Quantizer
from . import closed_form, exact, gradients, sampling
from .exact import Law, law
from .gradients import EstimatorReport, GradientEstimate, compare
from .losses import Loss, Quadratic, pointwise, values_of
from .paths import mixtures, path_curvature
from .sampling import Estimate

LOSS_METHODS = ("exact", "closed_form", "second_order", "monte_carlo", "antithetic", "quasi_monte_carlo")
GRADIENT_METHODS = (
    "exact", "closed_form", "second_order", *gradients.PER_SAMPLE, "rtn_straight_through", "cage",
)  # fmt: skip

__all__ = [
    "GRADIENT_METHODS", "LOSS_METHODS", "Estimate", "EstimatorReport", "GradientEstimate", "Law", "Loss", "Quadratic",
    "compare", "law", "mixtures", "path_curvature", "pointwise", "smoothed_gradient", "smoothed_loss",
]  # fmt: skip


_LOSS_RULES: dict[str, Callable] = {
    "exact": exact.law,
    "closed_form": closed_form.smoothed_loss,
    "second_order": closed_form.second_order_loss,
    "monte_carlo": sampling.monte_carlo,
    "antithetic": sampling.monte_carlo,
    "quasi_monte_carlo": sampling.quasi_monte_carlo,
}
_GRADIENT_RULES: dict[str, Callable] = {
    "exact": gradients.exact,
    "closed_form": closed_form.smoothed_gradient,
    "second_order": closed_form.second_order_gradient,
    **dict.fromkeys(gradients.PER_SAMPLE, gradients.sampled),
    "rtn_straight_through": gradients.rounded_to_nearest,
    "cage": gradients.cage,
}
_GIVEN = {"loss", "w", "q", "method", "moving", "antithetic"}


def _check_options(method: str, rule: Callable, options: dict[str, Any]) -> None:
    """ValueError naming an option the method does not take, or one it needs."""
    known = {k: p for k, p in signature(rule).parameters.items() if k not in _GIVEN}
    for name in options:
        if name not in known:
            raise ValueError(f"method {method!r} takes no option {name!r}; valid: {', '.join(known) or 'none'}")
    for name, parameter in known.items():
        if parameter.default is Parameter.empty and name not in options:
            raise ValueError(f"method {method!r} needs the option {name!r}")


def smoothed_loss(loss: Loss, w: Any, q: Quantizer | str, method: str = "exact", **options: Any) -> Estimate:
    """``E[L(RR(w))]`` for a batched loss (see :func:`pointwise`), with a standard error where it is sampled.

    ``method``: ``exact`` (enumeration, up to about 20 weights off the lattice), ``closed_form`` (:class:`Quadratic`
    only), ``second_order`` (needs ``curvature=``, in ``w``'s shape), ``monte_carlo``, ``antithetic`` or
    ``quasi_monte_carlo`` (``samples=``, ``seed=``). Raises ValueError naming the valid methods or options.
    """
    if method in _LOSS_RULES:
        _check_options(method, _LOSS_RULES[method], options)
    if method in ("closed_form", "second_order"):
        q, w = sampling.prepared(w, q)
    if method == "exact":
        found = exact.law(w, q, **options)
        return Estimate(exact.expectation(found, values_of(loss, found.points)), 0.0, len(found.probs), method)
    if method in ("closed_form", "second_order"):
        return Estimate(_LOSS_RULES[method](loss, w, q, **options), 0.0, 1, method)
    if method in ("monte_carlo", "antithetic"):
        return sampling.monte_carlo(loss, w, q, antithetic=method == "antithetic", **options)
    if method == "quasi_monte_carlo":
        return sampling.quasi_monte_carlo(loss, w, q, **options)
    raise ValueError(f"unknown method {method!r}; valid: {', '.join(LOSS_METHODS)}")


def smoothed_gradient(
    loss: Loss, w: Any, q: Quantizer | str, method: str = "exact", lattice: str = "moving", **options: Any
) -> GradientEstimate:
    """Gradient of the smoothed loss, by an estimator's name, with an elementwise standard error where it is sampled.

    ``lattice``: ``"moving"`` differentiates the scale as well (the true gradient; claim C15), ``"detached"`` holds it
    fixed. ``exact``, ``closed_form``, ``second_order`` and ``corrected`` know both; ``conditional_difference`` and
    ``score_function`` are unbiased for the detached one and must be asked for it; ``corrected`` is unbiased for losses
    that are quadratic in each single weight (claim C22). ``straight_through``, ``detached_noise``,
    ``rtn_straight_through`` and ``cage`` are biased baselines: they do not estimate this gradient, and ignore
    ``lattice``. Sampled ones take ``samples=``, ``seed=`` and, for antithetic pairs, ``pairs=True``. Raises ValueError
    naming the valid methods.
    """
    if lattice not in ("moving", "detached"):
        raise ValueError(f"unknown lattice {lattice!r}; valid: moving, detached")
    moving = lattice == "moving"
    if method in _GRADIENT_RULES:
        _check_options(method, _GRADIENT_RULES[method], options)
    if method in ("exact", "closed_form", "second_order"):
        if method != "exact":
            _, w = sampling.prepared(w, q)
        value = _GRADIENT_RULES[method](loss, w, q, moving=moving, **options)
        return GradientEstimate(value, np.zeros(value.shape), 0, method)
    if method in ("conditional_difference", "score_function") and moving and not Quantizer.parse(q).scale.is_frozen:
        raise ValueError(
            f"method {method!r} is defined on a fixed lattice: pass lattice='detached' or a frozen quantizer"
        )
    if method in gradients.PER_SAMPLE:
        return gradients.sampled(method, loss, w, q, moving=moving, **options)
    if method in ("rtn_straight_through", "cage"):
        value = _GRADIENT_RULES[method](loss, w, q, **options)
        return GradientEstimate(value, np.zeros(value.shape), 0, method)
    raise ValueError(f"unknown method {method!r}; valid: {', '.join(GRADIENT_METHODS)}")
