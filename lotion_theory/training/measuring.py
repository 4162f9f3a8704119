"""Where a penalty's curvature is measured: at the weights, at a randomized rounding, or at a mixture of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..arguments import integer
from ..methods.rule import PLACES, mixed
from ..streams import Stream
from ._model.aside import set_aside, untouched
from ._model.swap import swapped
from .casts import cast_of
from .curvature import Curvature
from .gnb import gnb_update
from .hutchinson import hutchinson_update
from .kfac import Kfac
from .selection import Quantized

WARM_UP = 2**63
"""Measurements of a warm-up are numbered from here on, those of training by its steps."""


@contextmanager
def moved_to(place: str, items: list[Quantized], seed: int, number: int) -> Iterator[None]:
    """Inside the block the weights are at a ``place`` of :data:`~lotion_theory.methods.rule.PLACES`, drawn from
    (``seed``, ``number``): the same on every process, for any sharding."""
    if place == "weight":
        yield
        return
    stream = Stream(seed, "curvature")
    t = float(stream.spawn("t").uniforms(1, number, dtype="float64")[0])

    def write(originals: list[Tensor]) -> None:
        for item, weights in zip(items, originals, strict=True):
            point = cast_of(item, weights, "randomized", stream.spawn("rounding"), number)
            if place == "mixture":
                own = stream.spawn("mixture").spawn(item.name)
                u = own.uniforms(tuple(weights.shape), number, like=weights, start=item.start)
                point = mixed(weights, point, u, t)
            item.local.copy_(point)

    with swapped(items, write):
        yield


class Measured:
    """What a penalty knows of where its curvature is measured, and how it is measured there."""

    items: list[Quantized]
    curvature: Curvature
    kind: str
    count: Tensor
    _source: nn.Module | list[nn.Parameter]
    _added: bool

    @property
    def every(self) -> list[nn.Parameter]:
        """All parameters that the penalty was given, quantized or not."""
        return list(self._source.parameters()) if isinstance(self._source, nn.Module) else self._source

    def observe(self, batch_size: int, scale: float = 1.0) -> None:
        """Take the loss gradient into the curvature."""
        raise NotImplementedError

    def _set_place(self, place: str, every: int, seed: int) -> None:
        if place not in PLACES:
            raise ValueError(f"curvature_at = {place!r}; valid: {', '.join(PLACES)}")
        if place != "weight" and self.kind in ("adam", "given"):
            raise ValueError(f"curvature_at = {place!r}: curvature {self.kind!r} is not measured by a pass")
        self.curvature_at, self.curvature_every = place, integer(every, "curvature_every")
        self.seed, self._inside, self._warming = seed, False, 0
        if isinstance(self.curvature, Kfac):
            self.curvature.recording = place == "weight"

    @property
    def due(self) -> bool:
        """Whether the curvature is to be measured in this step: in each ``curvature_every``-th, and while there is
        none."""
        return not self.curvature.ready or int(self.count) % self.curvature_every == 0

    @property
    def number(self) -> int:
        """By which points, labels and targets are drawn: the step, or the measurement of a warm-up."""
        return WARM_UP + self._warming - 1 if self._warming else int(self.count)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside the block the weights are where the curvature is measured, and each ``.grad`` is None: run a forward
        and a backward pass there, and :meth:`observe` (or ``gnb_update``, ``hutchinson_update``).

        >>> if penalty.due:
        ...     with penalty.measuring():
        ...         scaler.scale(criterion(model(x), y)).backward()
        ...         penalty.observe(len(x), scale=scaler.get_scale())

        Afterwards weights, gradients, the buffers of a model that was given as a module, and torch's random numbers
        are as before. Not inside of ``with straight_through:``, whose values are no weights.
        """
        if self.kind in ("adam", "given"):
            raise RuntimeError(f"measuring() is for curvature that a pass measures, this one is {self.kind!r}")
        model = self._source if isinstance(self._source, nn.Module) else None
        added, self._added = self._added, False
        if isinstance(self.curvature, Kfac):
            self.curvature.begin()
        self._inside = True
        try:
            with ExitStack() as stack:
                stack.enter_context(set_aside(self.every))
                stack.enter_context(untouched(model, self.count.device))
                stack.enter_context(moved_to(self.curvature_at, self.items, self.seed, self.number))
                yield
        finally:
            self._inside, self._added = False, added
            if isinstance(self.curvature, Kfac):
                self.curvature.recording = self.curvature_at == "weight"

    def measure(self, closure: Callable[[], Tensor], batch_size: int | None = None, **options: Any) -> bool:
        """Where it is :attr:`due`, run ``closure()`` and a backward pass as in :meth:`measuring`; whether it was.

        >>> penalty.measure(lambda: criterion(model(x), y), batch_size=len(x))  # anywhere in the step

        ``closure``: the mean loss over ``batch_size`` samples ("fisher", "kfac", "hutchinson"), or the logits or
        outputs ("gnb", and "kfac" with the option ``loss``). ``options``: those of
        :func:`~lotion_theory.training.gnb_update` and :func:`~lotion_theory.training.hutchinson_update`, whose ``seed``
        is the penalty's, or of :meth:`observe`.
        """
        if not self.due:
            return False
        self._measure(closure, batch_size, options)
        return True

    def warm_up(
        self, batches: Iterable[Any], closure: Callable[[Any], Tensor], batch_size: int | None = None, **options: Any
    ) -> None:
        """Measure the curvature on each of ``batches`` before training, so that the first step has some.

        >>> penalty.warm_up(some_batches, lambda batch: criterion(model(batch[0]), batch[1]), batch_size=64)

        ``closure(batch)`` and the rest: as for :meth:`measure`. Nothing is trained or counted.
        """
        try:
            for batch in batches:
                self._warming += 1
                self._measure(lambda batch=batch: closure(batch), batch_size, options)  # type: ignore[misc]
        finally:
            self._warming = 0

    def _measure(self, closure: Callable[[], Tensor], batch_size: int | None, options: Mapping[str, Any]) -> None:
        with self.measuring():
            found = closure()
            if self.kind == "gnb" or "loss" in options:
                gnb_update(self, found, batch_size=batch_size, seed=self.seed, **options)
            elif self.kind == "hutchinson":
                hutchinson_update(self, found, seed=self.seed, **options)
            else:
                if batch_size is None:
                    raise ValueError(f"curvature {self.kind!r} needs batch_size, the number of samples in the mean")
                found.backward()
                self.observe(batch_size, **options)

    def check_place(self, what: str) -> None:
        """RuntimeError where a gradient or logits that ``what`` takes are not from where the curvature is measured."""
        if self.curvature_at != "weight" and not self._inside:
            raise RuntimeError(
                f"curvature_at = {self.curvature_at!r} is measured by measure(), or inside of measuring(): {what}() "
                "would take what belongs to the weights"
            )
