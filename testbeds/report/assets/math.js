/* Rounding and smoothing of a block of two weights under a quadratic loss, in float64.
 *
 * The formulas are those of lotion_theory: _kernels.py, lattice.py and smoothing/; tests hold the two together.
 * A problem is {book, h: [[h11, h12], [h12, h22]], center: [a, b], frozen, top, lambda}; book has `units` (levels over
 * the highest one) and `even` (where ties go); `top` is the highest level of the frozen lattice.
 */
const Lotion = { draw: {} };

Lotion.math = (() => {
  "use strict";

  /* The top level: the largest magnitude of the block, or the frozen one. */
  const anchor = (p, w) => (p.frozen ? p.top : Math.max(Math.abs(w[0]), Math.abs(w[1])));

  /* The two adjacent levels around x on the lattice top * units; beyond its ends x is clipped. */
  function cell(book, top, x) {
    const units = book.units;
    let low = 0, high = units.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (top * units[middle] <= x) low = middle; else high = middle - 1;
    }
    const below = top * units[low], above = top * units[low + 1];
    const atHi = x >= above, atLo = x <= below;
    const lo = atHi ? above : below, hi = atLo ? below : above;
    const ilo = atHi ? low + 1 : low, ihi = atLo ? low : low + 1;
    const target = x > hi ? hi : x < lo ? lo : x;
    return { target, lo, hi, ilo, ihi, clipped: target !== x, hiEven: book.even[ihi] === 1 };
  }

  /* Rounding error of a - b (Knuth's TwoSum). */
  function differenceError(a, b) {
    const d = a - b, bSeen = a - d, aSeen = d + bSeen;
    return (a - aSeen) + (bSeen - b);
  }

  /* Round to nearest, ties to even, decided as exact arithmetic would. */
  function nearest(c) {
    const below = c.target - c.lo, above = c.hi - c.target;
    const eBelow = differenceError(c.target, c.lo), eAbove = differenceError(c.hi, c.target);
    const same = below === above;
    const nearer = below > above || (same && eBelow > eAbove);
    const tie = same && eBelow === eAbove;
    return nearer || (tie && c.hiEven) ? c.hi : c.lo;
  }

  const probUp = (c) => (c.target - c.lo) / ((c.hi - c.lo) + (c.hi === c.lo ? 1 : 0));
  const variance = (c) => (c.hi - c.target) * (c.target - c.lo);

  const cells = (p, w) => {
    const top = anchor(p, w);
    return [cell(p.book, top, w[0]), cell(p.book, top, w[1])];
  };

  function gradientAt(p, w) {
    const x = w[0] - p.center[0], y = w[1] - p.center[1];
    return [x * p.h[0][0] + y * p.h[1][0], x * p.h[0][1] + y * p.h[1][1]];
  }

  function lossAt(p, w) {
    const g = gradientAt(p, w);
    return ((w[0] - p.center[0]) * g[0] + (w[1] - p.center[1]) * g[1]) / 2;
  }

  /* E f(RR(w)) over the four outcomes, f giving an array. */
  function expectation(c, f) {
    const up = [probUp(c[0]), probUp(c[1])];
    let total = null;
    for (const first of [0, 1]) for (const second of [0, 1]) {
      const chance = (first ? up[0] : 1 - up[0]) * (second ? up[1] : 1 - up[1]);
      if (chance === 0) continue;
      const value = f([first ? c[0].hi : c[0].lo, second ? c[1].hi : c[1].lo]);
      total = total === null ? value.map((v) => chance * v) : total.map((t, k) => t + chance * value[k]);
    }
    return total;
  }

  /* The four losses at w: float, RTN, smoothed (by enumeration), and float plus the weighted penalty. */
  function losses(p, w) {
    const c = cells(p, w), plain = lossAt(p, w);
    const penalty = (p.h[0][0] * variance(c[0]) + p.h[1][1] * variance(c[1])) / 2;
    return {
      float: plain,
      quantized: lossAt(p, [nearest(c[0]), nearest(c[1])]),
      smoothed: expectation(c, (q) => [lossAt(p, q)])[0],
      penalized: plain + p.lambda * penalty,
    };
  }

  /* What each method follows downhill at w. */
  function gradients(p, w) {
    const c = cells(p, w), plain = gradientAt(p, w);
    const detached = plain.slice();
    let flow = 0;
    for (const i of [0, 1]) {
      if (c[i].clipped) continue;
      const half = p.lambda * p.h[i][i] / 2;
      detached[i] += half * ((c[i].hi - w[i]) - (w[i] - c[i].lo));
      flow += half * (p.book.units[c[i].ilo] * -(c[i].hi - w[i]) + p.book.units[c[i].ihi] * (w[i] - c[i].lo));
    }
    const rate = p.frozen ? [0, 0] : anchorRate(w);
    return {
      float: plain,
      ste: gradientAt(p, [nearest(c[0]), nearest(c[1])]),
      rrste: expectation(c, (q) => gradientAt(p, q)),
      detached,
      attached: [detached[0] + flow * rate[0], detached[1] + flow * rate[1]],
    };
  }

  /* Derivative of the largest magnitude: the sign at it, shared among ties. */
  function anchorRate(w) {
    const top = Math.max(Math.abs(w[0]), Math.abs(w[1]));
    const hit = w.map((x) => (Math.abs(x) === top && x !== 0 ? Math.sign(x) : 0));
    const count = Math.abs(hit[0]) + Math.abs(hit[1]);
    return count ? hit.map((x) => x / count) : hit;
  }

  /* Plain descent along one method's gradient: the points of the path. */
  function path(p, method, start, rate, steps) {
    const points = [start.slice()];
    let w = start.slice();
    for (let k = 0; k < steps; k++) {
      const g = gradients(p, w)[method];
      w = [w[0] - rate * g[0], w[1] - rate * g[1]];
      points.push(w.slice());
    }
    return points;
  }

  const cast = (p, w) => cells(p, w).map(nearest);

  return { anchor, cell, cells, nearest, probUp, variance, lossAt, gradientAt, losses, gradients, path, cast };
})();
