"""What a training method may do around the loss gradient.

A method sees every optimizer step three times. Before the forward passes it may put other values (quantized weights)
into the parameters; after the backward passes it puts the float values back and may add to the gradients (a penalty);
after the update it may move the weights. Model, optimizer and data order are the same for all methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lotion_theory import Quantizer


@dataclass(frozen=True)
class Step:
    """One optimizer step as a method sees it: its number (from 0) of ``steps``, its learning rate, the number of
    tokens behind the mean gradient (over all devices), and this device's micro-batches of inputs and targets."""

    number: int
    steps: int
    lr: float
    tokens: int
    batches: tuple[tuple[Tensor, Tensor], ...]


class Method(Protocol):
    """Hooks around one optimizer step, and what a checkpoint must keep of the method."""

    def before_forward(self, step: Step) -> None:
        """Called before the first micro-batch."""
        ...

    def after_backward(self, step: Step) -> None:
        """Called with the gradient of the mean loss over all devices in ``.grad``, before clipping."""
        ...

    def after_step(self, step: Step) -> None:
        """Called after the optimizer's update."""
        ...

    def grid(self, name: str, w: Tensor) -> Quantizer | None:
        """What weight ``name`` with the values ``w`` (all of it) is cast with; None for the run's format."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers that resuming needs; read again by ``torch.load(weights_only=True)``."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        ...


@dataclass(frozen=True)
class Setting:
    """What a method is made from.

    The whole ``model``; the ``weights`` to be quantized, by name (parameters of the model, sharded under FSDP); their
    ``quantizer`` (None for plain training); the method's own ``settings``; the run's ``seed``; its ``optimizer``, to
    which a method may add parameters of its own; how many ``steps`` it has, and ``tokens`` behind each mean gradient;
    whether the method's own work is to be ``compiled``.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    quantizer: Quantizer | None
    settings: Mapping[str, Any]
    seed: int
    optimizer: Any = None
    steps: int = 1
    tokens: int = 1
    compiled: bool = False


class Plain:
    """Training that knows nothing of quantization: the base of PTQ, whose cast comes after training.

    Also a base for methods that need only some of the hooks. Raises ValueError for settings: there are none.
    """

    def __init__(self, setting: Setting) -> None:
        if setting.settings:
            raise ValueError(f"method.settings: this method has none, not {', '.join(setting.settings)}")

    def before_forward(self, step: Step) -> None:
        """Nothing."""

    def after_backward(self, step: Step) -> None:
        """Nothing."""

    def after_step(self, step: Step) -> None:
        """Nothing."""

    def grid(self, name: str, w: Tensor) -> Quantizer | None:
        """The run's format."""
        return None

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take."""
