"""The command ``lotion export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Export:
    """Write the quantized points of a run made by `lotion train`, bit for bit, for other programs to load or to run.

    Example: lotion export runs/lm/tiny-lotion-int4-seed0 --out model.safetensors
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="folder of the run")]
    out: Annotated[Path, tyro.conf.arg(help="file or folder to write")]
    kind: Annotated[
        Literal["packed", "gguf", "folder", "compressed-tensors"] | None,
        tyro.conf.arg(
            help="packed safetensors; a GGUF model that llama.cpp runs, of formats such as q4_0 and q8_0; a Hugging "
            "Face folder, or one with packed integers; by default what --out ends in, else packed"
        ),
    ] = None
    dequantized: Annotated[bool, tyro.conf.arg(help="write the values as float32 where codes have no place")] = False
    tokenizer: Annotated[str | None, tyro.conf.arg(help="the run's tokenizer, if it is not beside its tokens")] = None
    fall_back: Annotated[bool, tyro.conf.arg(help="if the newest checkpoint is damaged, use the one before")] = False

    def run(self, console: Console) -> int:
        """Write the file and print what it holds."""
        try:
            from ..lm.export import export_run
        except ImportError as error:
            raise ImportError(f"exporting needs {error.name}: pip install 'lotion-theory[lm]'") from None
        if self.out.is_dir() and self.kind not in ("folder", "compressed-tensors"):
            raise ValueError(f"--out {self.out}: is a folder")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        found = export_run(self.folder, self.out, self.kind, self.fall_back, self.dequantized, self.tokenizer)
        console.print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                                for name, value in found.items()), highlight=False)  # fmt: skip
        print(self.out)
        return 0


COMMAND = Export
