"""The command ``lotion prepare``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Prepare:
    """Tokenize texts into files that `lotion train --tokens FOLDER` reads. An interrupted preparation goes on.

    Texts are local files (plain, or JSON lines with a field "text", gzipped or not), or C4 streamed from the hub. Or
    take ids as they are (--ids): little-endian uint16, .xz or not, whose documents are put in a random order.

    Example: lotion prepare --files wiki.jsonl.gz --tokenizer gpt2.tiktoken --out runs/tokens/wiki
    """

    out: Annotated[Path, tyro.conf.arg(help="folder for the token files")]
    files: Annotated[tuple[Path, ...], tyro.conf.arg(help="local texts", help_behavior_hint="")] = ()
    c4: Annotated[bool, tyro.conf.arg(help="stream C4 (English) instead; its own validation split is held out")] = False
    ids: Annotated[tuple[Path, ...], tyro.conf.arg(help="files of ids instead", help_behavior_hint="")] = ()
    validation_ids: Annotated[tuple[Path, ...], tyro.conf.arg(help="files of held-out ids", help_behavior_hint="")] = ()
    vocabulary: Annotated[int, tyro.conf.arg(help="with --ids: ids are below it; default: GPT-2's")] = 50257
    end_of_text: Annotated[int, tyro.conf.arg(help="with --ids: the id after every document")] = 50256
    tokenizer: Annotated[
        str, tyro.conf.arg(help="bytes, a .tiktoken file of ranks (GPT-2's), or a tokenizer.json file")
    ] = "bytes"
    learn: Annotated[
        int | None, tyro.conf.arg(help="learn a byte-level BPE of so many ids from the texts, into OUT/tokenizer.json")
    ] = None
    separator: Annotated[str | None, tyro.conf.arg(help="cut plain files into documents here")] = None
    held_out_every: Annotated[int, tyro.conf.arg(help="hold out every so-manieth document")] = 20
    held_out_part: Annotated[
        float | None, tyro.conf.arg(help="instead hold out the last part of every text, e.g. 0.05")
    ] = None
    tokens_per_file: Annotated[int, tyro.conf.arg(help="size of the files")] = 50_000_000
    limit: Annotated[int | None, tyro.conf.arg(help="stop after about so many tokens, per split")] = None

    def run(self, console: Console) -> int:
        """Write the files and print the numbers of tokens."""
        from ..lm.text.prepare import prepare
        from ..lm.text.sources import c4, text_files
        from ..lm.text.tokenizer import tokenizer
        from ..lm.text.tokens import vocabulary_in

        if sum((self.c4, bool(self.files), bool(self.ids))) != 1:
            raise ValueError("give either --files or --c4 or --ids")
        if self.validation_ids and not self.ids:
            raise ValueError("--validation-ids goes with --ids")
        if self.ids:
            return self._take_ids(console)
        if self.learn is not None and self.tokenizer != "bytes":
            raise ValueError("--learn and --tokenizer exclude each other")
        texts = c4("train") if self.c4 else text_files(self.files, self.separator)
        chosen = tokenizer(self.tokenizer) if self.learn is None else self.learn
        for what in getattr(chosen, "ignored", ()):
            print(f"lotion: {self.tokenizer} asks for {what}, which is switched off here", file=sys.stderr)
        with console.status("tokenizing") as status:
            counts = prepare(
                self.out, texts, chosen, c4("validation") if self.c4 else None, self.held_out_every,
                self.held_out_part, self.tokens_per_file, self.limit,
                progress=lambda count: status.update(f"{count:,} tokens"),
            )  # fmt: skip
        for split, count in counts.items():
            print(f"{split}: {count:,} tokens, vocabulary {vocabulary_in(self.out, split)}")
        return 0

    def _take_ids(self, console: Console) -> int:
        from ..lm.text.ids import prepare_ids

        with console.status("reading") as status:
            counts = prepare_ids(
                self.out, self.ids, self.validation_ids, self.vocabulary, self.end_of_text, self.held_out_every,
                self.tokens_per_file, self.limit, progress=lambda count: status.update(f"{count:,} tokens"),
            )  # fmt: skip
        for split, count in counts.items():
            print(f"{split}: {count:,} tokens, vocabulary {self.vocabulary}")
        return 0


COMMAND = Prepare
