"""K-FAC's diagonal: the curvature of a linear layer as an outer product of two vectors, recorded by hooks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ._model.distributed import mean_over_processes
from .curvature import Curvature, blend, checked_decay, taken
from .selection import Quantized, is_sharded


class Kfac(Curvature):
    """``g[o, i] = E[d_o²] E[a_i²]`` for a linear layer with inputs ``a`` and loss gradients ``d`` of its outputs.

    Every token is a sample ("expand", Eschenhagen et al. 2023). With the labels of the data this is the empirical form;
    recorded during the backward pass of a loss with labels sampled from the model it estimates the Gauss-Newton matrix,
    exactly so for linear nets with mean-squared error. State: two vectors per layer, no buffer of the weights' size.
    A penalty added to the loss does not pass through the layers' outputs: it cannot disturb what is recorded.

    Under ``torch.compile`` record on the model that is not compiled: hooks are no part of a graph.
    """

    def __init__(self, items: list[Quantized], decay: float) -> None:
        super().__init__(items)
        self.decay = checked_decay(decay)
        for item in items:
            if is_sharded(item.parameter):
                raise ValueError(f"{item.name} is sharded; curvature='kfac' is for parameters held whole")
            if item.parameter.ndim != 2:
                raise ValueError(f"{item.name} is no matrix; exclude it, or use another curvature")
        self.inputs = [item.parameter.new_zeros(item.parameter.shape[1], dtype=item.working_type) for item in items]
        self.outputs = [item.parameter.new_zeros(item.parameter.shape[0], dtype=item.working_type) for item in items]
        self.left = self._number(1.0)
        self._seen: list[list[tuple[Tensor, int]]]
        self._back: list[list[tuple[Tensor, int]]]
        self.begin()

    def estimate(self, k: int) -> Tensor:
        return self.outputs[k][:, None] * self.inputs[k]

    def factor(self) -> Tensor:
        return 1 / taken(self.left) ** 2

    def state(self) -> dict[str, list[Tensor] | Tensor]:
        return {"inputs": self.inputs, "outputs": self.outputs, "left": self.left, "skipped": self.skipped}

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Record in every ``nn.Linear`` of ``model`` that holds a quantized weight, while it is in training mode and
        gradients are enabled. ValueError for a quantized weight that no linear layer of the model holds."""
        index = {id(item.parameter): k for k, item in enumerate(self.items)}
        handles, found = [], set()
        for module in model.modules():
            if isinstance(module, nn.Linear) and id(module.weight) in index:
                k = index[id(module.weight)]
                found.add(k)
                # No closure: a model with its hooks can then be pickled.
                handles.append(module.register_forward_hook(partial(self._record, k)))
        missing = [item.name for k, item in enumerate(self.items) if k not in found]
        if missing:
            for handle in handles:
                handle.remove()
            raise ValueError(f"no nn.Linear of the model holds {', '.join(missing)}: exclude them")
        return handles

    def begin(self) -> None:
        """Record from here on, and nothing of what was recorded before."""
        self._seen, self._back = [[] for _ in self.items], [[] for _ in self.items]
        self.recording = True

    def _record(self, k: int, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if not (self.recording and module.training and output.requires_grad):
            return
        self._seen[k].append(_squares(inputs[0]))
        output.register_hook(lambda gradient: self._back[k].append(_squares(gradient)))

    @torch.no_grad()
    def observe(self, batch_size: int, scale: float) -> None:
        """Take what was recorded into the averages: gradients of a mean over ``batch_size`` terms, times ``scale``.
        Left out as a whole where a square is not finite; a frozen layer may have recorded nothing."""
        live = [k for k, item in enumerate(self.items) if item.trained or (self._seen[k] and self._back[k])]
        for k in live:
            if not self._seen[k] or not self._back[k]:
                raise RuntimeError(
                    f"nothing was recorded for {self.items[k].name}: call watch(model) before, and observe() after, "
                    "the forward and backward pass of the model in training mode"
                )
        news: list[tuple[Tensor, Tensor, float]] = []
        for k in live:
            for average, parts, factor in (
                (self.inputs[k], self._seen[k], 1.0),
                (self.outputs[k], self._back[k], (batch_size / scale) ** 2),
            ):
                total = torch.stack([part for part, _ in parts]).sum(dim=0) / sum(count for _, count in parts)
                news.append((average, mean_over_processes(total), (1 - self.decay) * factor))
        self.begin()
        self.ready = True
        usable = self._usable(news)
        for average, total, share in news:
            blend([average], [total], self.decay, share, usable)
        blend([self.left], [None], self.decay, 0.0, usable)

    def _usable(self, news: list[tuple[Tensor, Tensor, float]]) -> bool | Tensor:
        """Whether what is to be added is finite; counts where it is not."""
        parts = [(total * share).isfinite().all().to(self.device) for _, total, share in news]
        usable = torch.stack(parts).all() if parts else torch.ones((), dtype=torch.bool, device=self.device)
        found = bool(usable) if self.device.type == "cpu" else usable
        self.count_skipped(found)
        return found


def _squares(x: Tensor) -> tuple[Tensor, int]:
    """Sum over tokens of the squares of ``x`` (..., features), and the number of tokens."""
    rows = x.detach().reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
    return rows.square().sum(dim=0), rows.shape[0]
