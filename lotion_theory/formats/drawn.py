"""Moments of scales that are drawn between two lattices (SR scales): the conditional means, and the variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import kernels
from .._arrays import Array, block_max, choose, detach, dtype_name, holds_seldom, is_exact, is_torch, largest, namespace


class Part(NamedTuple):
    """One of the two lattices. ``prob`` (blocks, 1): its probability; ``mean``: what is rounded there, between ``lo``
    and ``hi``; ``off``: ``mean`` minus the mean over both lattices; all but the first (blocks, n)."""

    prob: Array
    mean: Array
    lo: Array
    hi: Array
    off: Array


def conditional_mean(x: Array, mixture: tuple[Array, Array, Array]) -> Array:
    """What magnitudes above the threshold are rounded from on the coarse lattice, ``T⁺`` for the largest of a block.

    ``mixture``: threshold, probability of the coarse lattice and ``T⁺``, as in :class:`.scale_protocol.Draw`.
    """
    threshold, p, reach = mixture
    xp = namespace(x)
    size = abs(x)
    leads = detach(size) == block_max(detach(size))
    spread = kernels.mixture_target(detach(size), threshold, detach(p) + (p == 0))
    if is_torch(x) and x.requires_grad:
        # In autograd only where the derivative is used, and where 1 / p does not overflow.
        overflows = p * largest(dtype_name(x)) <= xp.maximum(reach, 0 * reach + 1)
        follows = ~leads & (size > threshold) & (p < 1) & ~overflows
        safe = xp.where(follows, p, 0 * detach(p) + 1)
        spread = xp.where(follows, kernels.mixture_target(size, threshold, safe), spread)
    # Rounding must not push a conditional mean out of [T, T⁺], nor the largest one off T⁺ itself.
    spread = xp.minimum(xp.maximum(spread, threshold), reach)
    spread = choose(leads, reach + 0 * detach(size), spread)
    return choose(x < 0, -spread, spread)


def variance(parts: list[Part]) -> Array:
    """Variance over the draw and the rounding, (blocks, n); infinite only where the value itself overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        value = sum(_usual(*part) for part in parts)
    if is_exact(value):
        return value
    xp = namespace(value)
    big = ~xp.isfinite(detach(value))
    if not holds_seldom(big):
        return value

    def only(where: Array, formula: Callable) -> Array:
        # The other weights are zeros to it, so that autograd meets no infinity of theirs.
        return sum(formula(p, *(xp.where(where, x, 0 * detach(x)) for x in rest)) for p, *rest in parts)

    with np.errstate(over="ignore"):
        return xp.where(big, only(big, _careful), only(~big, _usual))


def _usual(p: Array, mean: Array, lo: Array, hi: Array, off: Array) -> Array:
    return p * (kernels.variance(mean, lo, hi) + off**2)


def _careful(p: Array, mean: Array, lo: Array, hi: Array, off: Array) -> Array:
    """The same where squares overflow: a small probability comes first, and distances between levels are halved."""
    return p * (hi / 2 - mean / 2) * (mean / 2 - lo / 2) * 4 + p * off * off
