"""The decoder, top to bottom: pre-norm blocks of a mixer and a SwiGLU, as in today's open language models.

Letters in comments: B sequences, T tokens, W width, H heads, D = W / H, F hidden, V vocabulary. Quantization is applied
from outside, to the matrices of ``blocks``; query, key and value are separate matrices, each with scales of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lotion_theory import Stream

from .config import ModelConfig
from .linear import Linear
from .mixer import Recurrence
from .norm import EPSILON, RootMeanSquare

INIT_SCALE = 0.64
"""Standard deviation of initial weights times the root of the inputs: 0.02 at a width of 1024."""
ROTATION_BASE = 10_000.0


class Embedding(nn.Embedding):
    """A table of vectors, one per token; set by :meth:`Decoder.initialize` likewise."""

    def reset_parameters(self) -> None:
        """Leaves the weights as they are."""


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, in float32, and a learned gain (arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return RootMeanSquare.apply(x.float(), self.weight).to(x.dtype)
        return (F.rms_norm(x.float(), (x.shape[-1],), eps=EPSILON) * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions (arXiv 2104.09864) and normed queries and keys (arXiv 2010.04245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query, self.key, self.value = Linear(width, width), Linear(width, width), Linear(width, width)
        self.query_norm, self.key_norm = RMSNorm(width // self.heads), RMSNorm(width // self.heads)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        batch, length, width = x.shape  # (B, T, W)
        q, k, v = (layer(x).view(batch, length, self.heads, -1) for layer in (self.query, self.key, self.value))
        q, k = rotated(self.query_norm(q), rotation), rotated(self.key_norm(k), rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class SwiGLU(nn.Module):
    """``down(silu(gate x) * up x)`` (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate, self.up = Linear(config.width, config.hidden), Linear(config.width, config.hidden)
        self.down = Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # (B, T, W) -> (B, T, F) -> (B, T, W)


class Block(nn.Module):
    """Two residual steps: mixing along the sequence, then a network on each token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.width)
        self.mixer = Attention(config) if config.mixer == "attention" else Recurrence(config)
        self.feed_norm = RMSNorm(config.width)
        self.feed = SwiGLU(config)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), rotation)
        return x + self.feed(self.feed_norm(x))


class Decoder(nn.Module):
    """The language model. Made with arbitrary weights: :meth:`initialize` draws them.

    ``recompute``: keep only the input of each block for the backward pass and run the block again there.
    """

    rotation: Tensor

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        self.embedding = Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.head = None if config.tied else Linear(config.width, config.vocabulary)
        table = rotations(config.context, config.width // config.heads)
        self.register_buffer("rotation", table, persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Logits (B, T, V) for ``tokens`` (B, T); with ``targets`` (B, T) their cross-entropy in nats per token.

        ``reduction``: of the cross-entropy, as in torch: ``"mean"``, or ``"none"`` for all of it, (B, T).
        Raises ValueError for sequences longer than the context.
        """
        if tokens.shape[1] > self.config.context:
            raise ValueError(f"sequences of {tokens.shape[1]} tokens; valid: up to context = {self.config.context}")
        x = self.embedding(tokens)  # (B, T, W)
        rotation = self.rotation[: tokens.shape[1]]
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, use_reentrant=False)
            else:
                x = block(x, rotation)
        x = self.norm(x)
        logits = F.linear(x, self.embedding.weight) if self.head is None else self.head(x)  # (B, T, V)
        if targets is None:
            return logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)
        return loss if reduction == "mean" else loss.view(targets.shape)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw all weights: each parameter from a stream of its own name, whatever the device and the other layers.

        Matrices have standard deviation 0.64 / sqrt(inputs), those that write into the residual stream a further
        sqrt(2 depth) less; the embedding 0.64 / sqrt(width), so that logits start at 0.64 whatever the size (tied: but
        for the token that was read). A fixed 0.02, usual at widths near 1024, leaves a narrow model on a plateau for
        hundreds of steps, longer or shorter by seed.
        """
        stream = Stream(seed, "lm/init")
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue  # gains start at 1, decay rates at values of their own
            residual = name.endswith((".mixer.out.weight", ".feed.down.weight"))
            scale = INIT_SCALE / math.sqrt(parameter.shape[1] * (2 * self.config.depth if residual else 1))
            if parameter.ndim == 3:  # a convolution of few inputs per output
                scale = 1 / math.sqrt(parameter.shape[1] * parameter.shape[2])
            normals = stream.spawn(name).numpy_generator().standard_normal(tuple(parameter.shape), dtype="float32")
            parameter.copy_(torch.from_numpy(normals) * scale)


def rotations(length: int, size: int) -> Tensor:
    """Cosines and sines of the angles ``t * base**(-2 i / D)`` for heads of ``size`` D: (length, 2, D / 2)."""
    frequency = ROTATION_BASE ** -(torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size)
    angle = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), frequency)
    return torch.stack((angle.cos(), angle.sin()), dim=1).float()


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """``x`` (B, T, H, D) with the pairs (x_i, x_{i + D/2}) of token t turned by the angles of row t."""
    cos, sin = rotation[:, None].unbind(2)  # (T, 1, D / 2) each
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Numbers of parameters: ``embedding`` (with the output layer, counted once if shared), ``blocks`` (all others,
    norms included) and ``total``."""
    # Matrices are not written to before they are initialized, so this takes address space, no memory.
    sizes = {name: parameter.numel() for name, parameter in Decoder(config).named_parameters()}
    embedding = sum(size for name, size in sizes.items() if name.startswith(("embedding.", "head.")))
    total = sum(sizes.values())
    return {"embedding": embedding, "blocks": total - embedding, "total": total}


def flops_per_token(config: ModelConfig) -> float:
    """Floating-point operations per trained token, forward and backward: 6 per weight of a matrix product, the output
    layer included, and 12 depth * T * W for attention scores and sums (PaLM, arXiv 2204.02311, appendix B).

    T is the full context: the half that the causal mask saves counts, as is customary. Recomputation does not count.
    """
    matrices = parameter_counts(config)["blocks"] + config.vocabulary * config.width
    attention = 12 * config.depth * config.context * config.width if config.mixer == "attention" else 0
    return 6.0 * matrices + attention
