"""Small models as others store them, and what stands for quantized weights in tests of files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

TEXT = "Hello wörld, it's 1234 — of the clothes.\n\n  Two  spaces\tand Ā; naïve 😀"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16, "rms_norm_eps": 1e-5}  # fmt: skip


def decoder(seed: int = 0, **changes):
    """Our decoder of width 64 with two blocks, gains away from 1, and weights large enough that layers matter."""
    import torch

    from testbeds.lm.model.config import ModelConfig
    from testbeds.lm.model.decoder import Decoder

    config = {"vocabulary": 256, "width": 64, "depth": 2, "heads": 4, "hidden": 96, "context": 64, **changes}
    model = Decoder(ModelConfig(**config))
    model.initialize(seed)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=source))
            else:
                parameter.mul_(2)
    return model.eval()


def matrices(model) -> dict:
    """The weights of the blocks by name, detached."""
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim == 2 and ("blocks." in n or ".layers." in n)}


def cast_model(model, points):
    """A copy of ``model`` with ``points`` in place of weights."""
    import copy

    made = copy.deepcopy(model)
    for name, point in points.items():
        made.get_parameter(name).data.copy_(point)
    return made


def folder_model(folder: Path, family: str, dtype: str = "float32", tied: bool = False, seed: int = 0, **changes):
    """A Hugging Face folder with a random model of a family and a byte-pair tokenizer; returns the model."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family, **(SIZES | changes), tie_word_embeddings=tied, bos_token_id=None,
                                               eos_token_id=299, pad_token_id=None)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            # Gains and biases too: a test must see each of them.
            parameter.data = torch.randn(parameter.shape) * 0.15 + (parameter.ndim == 1)
    model.to(getattr(torch, dtype)).eval().save_pretrained(folder)
    byte_pairs(300).save(folder)
    return model


def byte_pairs(vocabulary: int):
    """A byte-pair tokenizer learned from a few words, as sources hold it."""
    from testbeds.lm.deploy import RunTokenizer
    from testbeds.lm.text.tokenizer import train_bpe

    return RunTokenizer(train_bpe(["hello world of tests, it's the test of the world " * 20], vocabulary))


@dataclass
class Stored:
    """Bytes of a type of ggml, made by gguf's own quantizer: what the room of stored types gives to writers."""

    type: "Kind"
    data: np.ndarray
    shape: tuple[int, ...]

    def to_bytes(self) -> np.ndarray:
        return self.data

    def values(self) -> np.ndarray:
        import gguf

        return gguf.quants.dequantize(self.data, gguf.GGMLQuantizationType[self.type.ggml]).reshape(self.shape)


@dataclass
class Kind:
    ggml: str


def stored(w, ggml: str) -> Stored:
    """A weight in a type of ggml."""
    import gguf

    w = np.asarray(w, np.float32)
    return Stored(Kind(ggml), gguf.quants.quantize(w, gguf.GGMLQuantizationType[ggml]), w.shape)
