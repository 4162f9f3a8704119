"""C18, C20: what descent converges to, and what Adam's second moment measures."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

from ...formats.quantizer import Quantizer
from ...smoothing import Quadratic, closed_form
from ...smoothing.gradients import rounded_to_nearest
from ._base import Outcome, claim, real_only
from .minima import rationals

C18 = claim(
    "C18", "descent on the smoothed loss converges", "bound",
    "fixed lattice, steps η_k → 0 with Σ η_k = ∞: "
    "the distance to a Clarke-stationary point ends below the last step's length",
    applies=real_only,
)  # fmt: skip
C18b = claim(
    "C18b", "straight-through QAT can chatter", "equality",
    "h=2, w*=.83, s=.25: no lattice point is a fixed point of w ← w - η h (cast(w) - w*), for any constant η",
    per_format=False,
)  # fmt: skip
C18c = claim(
    "C18c", "stationary is not minimal", "equality",
    "a lattice point that every step improves is Clarke-stationary too: "
    "'converges to a local minimum' needs a start that is not one",
    per_format=False,
)  # fmt: skip
C20 = claim(
    "C20", "Adam's second moment", "equality", "i.i.d. batches of B: E[ĝ²] = EF/B + (1 - 1/B) ḡ²", per_format=False
)


def _fixed(q: Quantizer) -> Quantizer:
    return q.with_partition("tensor").with_scale(1.0)


@C18.check("property", "48 one-weight problems, η_k = η₀ / √k")
def descent_converges(q: Quantizer) -> Outcome:
    """Why it converges. On a fixed lattice ``L_smooth`` of a semialgebraic ``L`` is continuous, locally Lipschitz and
    semialgebraic, hence Whitney stratifiable; for such functions every limit point of bounded subgradient iterates with
    ``η_k → 0``, ``Σ η_k = ∞`` (and ``Σ η_k² < ∞`` under gradient noise) is Clarke-stationary and the values converge
    (Davis, Drusvyatskiy, Kakade, Lee, arXiv 1804.07795). The same holds for the moving absmax lattice, whose pieces are
    semialgebraic too and which is continuous by C6; it fails for scale rules that jump.

    What is tested. One weight, ``L = ½ (w - w*)²``: ``L_smooth`` is the chord interpolation of ``L`` on the levels, so
    its one stationary point is the level nearest to ``w*``. Targets lie a quarter of a gap or more from every midpoint,
    where the chord would be flat and convergence slow. Iterates end in a cycle around the stationary level that
    oversteps it by at most one step, of length ``η |slope|`` with the steeper slope of the two cells; the return takes
    fewer than 10 steps, over which η changes by less than a tenth.
    """
    fixed, levels = _fixed(q), q.codebook.values
    window = levels[max(0, len(levels) // 2 - 8) :][:17]
    n, steps, rate = 48, 800, 0.5
    cell = np.arange(n) % (len(window) - 1)
    share = np.array([0.1, 0.25, 0.75, 0.9])[np.arange(n) // (len(window) - 1) % 4]
    target = window[cell] + share * np.diff(window)[cell]
    w = window[0] + (window[-1] - window[0]) * (0.05 + 0.9 * (np.arange(n) * 0.4142135623730951 % 1))
    loss = Quadratic(np.ones(n), target)
    for k in range(1, steps + 1):
        w = w - rate / np.sqrt(k) * closed_form.smoothed_gradient(loss, w, fixed, moving=False)
    nearest = np.argmin(np.abs(levels[None, :] - target[:, None]), axis=1)
    chords = np.abs((levels[:-1] + levels[1:])[None, :] / 2 - target[:, None])
    left = chords[np.arange(n), np.maximum(nearest - 1, 0)] * (nearest > 0)
    right = chords[np.arange(n), np.minimum(nearest, len(levels) - 2)] * (nearest < len(levels) - 1)
    bound = 1.1 * rate / np.sqrt(steps) * np.maximum(left, right)
    # Beyond the last level the clipped loss is constant: every point there is stationary, though not minimal.
    outside = (w < levels[0]) | (w > levels[-1])
    distance = np.where(outside, 0.0, np.abs(w - levels[nearest]))
    at = int(np.argmax(distance / bound))
    bad = distance[at] > bound[at]
    return Outcome(
        float(distance[at]),
        float(bound[at]),
        n,
        f"w* = {target[at]:.6g}" if bad else None,
        note=f"{steps} steps, worst distance / bound {distance[at] / bound[at]:.2f}",
    )


@C18b.check("exhaustive", "all one-weight fixed points, and the orbit in rational arithmetic")
def exact_chatter(q: Quantizer | None = None) -> Outcome:
    """A fixed point needs ``cast(w) = w*``, but .83 is no multiple of .25. The orbit for η = 1/10 is followed exactly:
    it keeps crossing the threshold .875, casting to .75 and 1 in turn, for as long as it is followed."""
    step, target, h, rate = Fraction(1, 4), Fraction(83, 100), 2, Fraction(1, 10)
    fixed = Quantizer.parse("int8").with_scale(step)
    loss = Quadratic(np.array([Fraction(h)], dtype=object), np.array([target], dtype=object))
    w = np.array([Fraction(1, 2)], dtype=object)
    casts = []
    for _ in range(200):
        gradient = rounded_to_nearest(loss, w, fixed)
        casts.append(fixed.cast(w)[0])
        w = w - rate * gradient
    tail = casts[100:]
    flips = sum(a != b for a, b in itertools.pairwise(tail))
    cast_values = set(tail)
    good = flips > 0 and cast_values == {Fraction(3, 4), Fraction(1)} and (target / step).denominator != 1
    return Outcome(
        float(flips),
        float(flips) if good else 0.0,
        200,
        None if good else f"casts {sorted(cast_values)}",
        note=f"{flips} flips in the last 100 steps",
    )


@C18c.check("exhaustive", "one-sided slopes at a local maximum of the interpolation")
def exact_stationary_maximum(q: Quantizer | None = None) -> Outcome:
    """``L`` takes the values 0, 1, 0 on three neighbouring levels: the chords make the middle level a strict local
    maximum of ``L_smooth`` with slopes +1 and -1, whose hull contains 0. Subgradient descent from any other point
    leaves it."""
    from ...smoothing import exact

    fixed = Quantizer.parse("int2").with_scale(Fraction(1))

    def loss(points: np.ndarray) -> np.ndarray:
        return 1 - abs(points[:, 0])

    slopes = []
    for side in (-1, 1):
        w = np.array([Fraction(side, 8)], dtype=object)
        slopes.append((exact.smoothed_loss(loss, w, fixed) - 1) / w[0])
    contains = min(slopes) <= 0 <= max(slopes)
    peak = exact.smoothed_loss(loss, np.array([Fraction(0)], dtype=object), fixed) == 1
    return Outcome(float(slopes[0]), 1.0, 2, None if contains and peak and slopes == [1, -1] else f"slopes {slopes}")


@C20.check("exhaustive", "every batch of up to 3 draws from finite gradient laws, exact")
def exact_second_moment(q: Quantizer | None = None) -> Outcome:
    last, checked = (0.0, 0.0), 0
    for n, size in itertools.product((2, 3, 4), (1, 2, 3)):
        gradients = rationals(f"C20/{n}", (n,), -9, 9, 4)
        weights = rationals(f"C20/{n}/p", (n,), 1, 5)
        probs = weights / weights.sum()
        found = Fraction(0)
        for batch in itertools.product(range(n), repeat=size):
            chance = Fraction(1)
            for i in batch:
                chance *= probs[i]
            found += chance * (sum(gradients[list(batch)]) / size) ** 2
        fisher, mean = (probs * gradients**2).sum(), (probs * gradients).sum()
        stated = fisher / size + (1 - Fraction(1, size)) * mean**2
        checked += 1
        last = (float(found), float(stated))
        if found != stated:
            return Outcome(*last, checked, f"{n} gradients, batches of {size}")
    return Outcome(*last, checked)
