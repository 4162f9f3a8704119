"""Quantized weights as files: bit-exact codes, packed safetensors, GGUF, tensors of torchao, and whole models.

Importing this package needs numpy only; safetensors, gguf, torch and torchao are imported by the functions that use
them.
"""

from .codes import Encoded, decode, encode, integers
from .gguf_file import representable, write_gguf
from .models import Written, write_like
from .packed import PackedReport, load_packed, pack, save_packed, unpack
from .torchao_tensors import to_torchao

__all__ = [
    "Encoded", "PackedReport", "Written", "decode", "encode", "integers", "load_packed", "pack", "representable",
    "save_packed", "to_torchao", "unpack", "write_gguf", "write_like",
]  # fmt: skip
