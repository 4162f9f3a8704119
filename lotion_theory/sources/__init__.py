"""Models and their tokenizers from the containers that others made: Hugging Face folders and GGUF files.

Importing this package needs numpy only; torch, transformers, gguf and safetensors are imported by the functions that
use them.
"""

from .opened import open_source
from .source import Place, Source, Tokenizer

__all__ = ["Place", "Source", "Tokenizer", "open_source"]
