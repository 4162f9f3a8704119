"""Time of the first call of a process, printed as JSON; started by ``rounding.py``.

    python benchmarks/first_call.py FORMAT OPERATION WEIGHTS

``first``, ``warm``: seconds of the first call and the median of those that follow, each as wall and processor time.
Importing the package, parsing the format and drawing the weights (float32, numpy) are not part of them.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from lotion_theory import Quantizer


def main(text: str, operation: str, size: int) -> None:
    """Call the operation seven times."""
    rng, q = np.random.default_rng(1), Quantizer.parse(text)
    w = rng.standard_normal((-(-size // 1024), 1024), dtype=np.float32)
    if q.codebook.is_complex:
        w = (w + 1j * w[::-1]).astype(np.complex64)
    drawn: list[np.ndarray] = []
    if operation == "round":
        drawn.append(rng.random((*w.shape, 2) if q.codebook.is_complex else w.shape, dtype=np.float32))
        if q.scale.is_drawn:
            drawn.append(rng.random(w.size // q.partition.length(w.shape), dtype=np.float32))
    call = getattr(q, operation)
    seconds = []
    for _ in range(7):
        wall, cpu = time.perf_counter(), time.process_time()
        call(w, *drawn)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    print(json.dumps({"first": seconds[0], "warm": np.median(seconds[1:], axis=0).tolist()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
