"""Quantized weights as files: bit-exact codes, packed safetensors, GGUF, and tensors of torchao.

Importing this package needs numpy only; safetensors, gguf, torch and torchao are imported by the functions that use
them.
"""

from .codes import Encoded, decode, encode, integers
from .gguf_file import representable, write_gguf
from .packed import PackedReport, load_packed, pack, save_packed, unpack
from .torchao_tensors import to_torchao

__all__ = [
    "Encoded", "PackedReport", "decode", "encode", "integers", "load_packed", "pack", "representable", "save_packed",
    "to_torchao", "unpack", "write_gguf",
]  # fmt: skip
