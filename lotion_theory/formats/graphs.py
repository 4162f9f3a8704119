"""Functions of a quantizer as one operation of ``torch.compile``, whose compiler sees through it: no graph is cut.

What ``torch.compile`` records of a call is the plain path on stand-ins for tensors, on which no value decides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from .._arrays import is_compiled

if TYPE_CHECKING:
    from .quantizer import Quantizer

Function = TypeVar("Function", bound=Callable[..., Any])

FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""By name, the functions that :func:`one_operation` was told of."""


def one_operation(function: Function) -> Function:
    """``function(quantizer, *arrays)``, which gives arrays, such that ``torch.compile`` takes a call as one operation.

    Arguments beside the quantizer are arrays, numbers or None.
    """
    name = function.__qualname__
    FUNCTIONS[name] = function

    @wraps(function)
    def call(quantizer: Quantizer, *arguments: Any, **named: Any) -> Any:
        if not is_compiled():
            return function(quantizer, *arguments, **named)
        from .graphs_torch import run

        return run(name, quantizer, *arguments, **named)

    return call  # type: ignore[return-value]
