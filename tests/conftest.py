"""Settings that hold for every test: one thread per process, and the hypothesis profiles."""

import os

# Set before numpy or torch is imported, here or in the worker processes that inherit it: several workers with several
# threads each are slower than one thread each, and the order of a threaded sum is not reproducible.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from hypothesis import HealthCheck, settings  # noqa: E402

# No deadline and no check for slow generation: both measure time, and time on a shared machine is not a property of
# the code (numba compiles in the first call). In CI the examples are fixed: a failure there is about the change.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=50,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("exhaustive", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
