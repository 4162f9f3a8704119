"""Blocks on which the report page and the library must compute the same losses and gradients, and what the library computes."""

import numpy as np

from lotion_theory import Quadratic, Quantizer, Stream, smoothed_loss
from lotion_theory.landscape.fields import gradient_field
from lotion_theory.smoothing import closed_form
from testbeds.report.lattices import NAMES


def cases():
    """Blocks of two weights on moving and frozen lattices: random ones, and those on levels, at ties and at the clip edge."""
    draw = Stream(0, "report/browser").numpy_generator()
    for name in NAMES:
        units = [float(u) for u in Quantizer.parse(name).codebook.units]
        top = float(draw.uniform(0.3, 1.5))
        levels = [top * u for u in draw.choice(units, 4)]
        k = draw.integers(0, len(units) - 1, 4)
        middles = [(top * units[i] + top * units[i + 1]) / 2 for i in k]
        places = [*draw.uniform(-1.6, 1.6, 6), *levels, *middles, top, -top, np.nextafter(top, 2), 0.0]
        for frozen in (False, True):
            for first in places:
                # In a moving block the second weight sets the lattice, ties with the first, or lies anywhere.
                second = (top, top, -first or top, float(draw.uniform(-1.6, 1.6)))[draw.integers(4)]
                h = draw.uniform(0.1, 4, 2)
                off = float(draw.uniform(-0.9, 0.9) * np.sqrt(h[0] * h[1]))
                yield {
                    "format": name, "h": [[float(h[0]), off], [off, float(h[1])]], "frozen": frozen, "top": top,
                    "center": draw.uniform(-1.5, 1.5, 2).tolist(), "lambda": float(draw.choice([0.0, 0.5, 1.0, 3.0])),
                    "w": [float(first), float(second)],
                }  # fmt: skip


def expected(case):
    loss = Quadratic(np.array(case["h"]), np.array(case["center"]))
    w, weight = np.array(case["w"]), case["lambda"]
    q = Quantizer.parse(case["format"])
    if case["frozen"]:
        q = q.freeze(np.full(2, case["top"]))
    second = [closed_form.second_order_gradient(loss, w, q, loss.curvature, moving, weight) for moving in (False, True)]
    return {
        "cast": q.cast(w),
        "float": loss(w[None])[0],
        "quantized": loss(q.cast(w)[None])[0],
        "smoothed": smoothed_loss(loss, w, q).value,
        "penalized": closed_form.second_order_loss(loss, w, q, loss.curvature, weight),
        "slopes": {
            "float": loss.gradient(w[None])[0],
            "ste": gradient_field("rtn_straight_through", loss, w[None], q)[0],
            "rrste": gradient_field("straight_through", loss, w[None], q)[0],
            "detached": second[0],
            "attached": second[1],
        },
    }
