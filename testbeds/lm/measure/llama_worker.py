"""Runs one request with llama.cpp: `python llama_worker.py LIBRARY REQUEST.json RESULT.npz`.

A process of its own, so that no fault of the library ends the caller. It needs numpy and the library's C interface.
"""

import ctypes as c
import json
import os
import sys

import numpy as np

ERROR = 4
"""Level of a message in ggml's log."""
FLOAT16, FLOAT32, AUTOMATIC, OFF = 1, 0, -1, 0


class Opaque(c.Structure):
    """Settings that are passed on as they came; larger than any version has them."""

    _fields_ = (("room", c.c_uint64 * 64),)


class ContextSettings(c.Structure):
    """Settings of a context up to the last one that is set here."""

    _fields_ = (
        *((name, c.c_uint32) for name in ("size", "batch", "part", "sequences", "states", "outputs", "outputs_each")),
        ("threads", c.c_int32), ("threads_batch", c.c_int32),
        *((name, c.c_int32) for name in ("kind", "scaling", "pooling", "attention", "flash")),
        ("floats", c.c_float * 6), ("trained_size", c.c_uint32), ("threshold", c.c_float),
        ("callback", c.c_void_p), ("callback_data", c.c_void_p), ("type_k", c.c_int32), ("type_v", c.c_int32),
        ("room", c.c_uint64 * 64),
    )  # fmt: skip


class Batch(c.Structure):
    """Tokens to evaluate."""

    _fields_ = (
        ("count", c.c_int32), ("token", c.POINTER(c.c_int32)), ("embedding", c.c_void_p),
        ("position", c.POINTER(c.c_int32)), ("sequences", c.POINTER(c.c_int32)),
        ("sequence", c.POINTER(c.POINTER(c.c_int32))), ("wanted", c.POINTER(c.c_int8)),
    )  # fmt: skip


_FUNCTIONS = {
    "llama_backend_init": (None,),
    "llama_log_set": (None, c.c_void_p, c.c_void_p),
    "llama_model_default_params": (Opaque,),
    "llama_model_load_from_file": (c.c_void_p, c.c_char_p, Opaque),
    "llama_model_get_vocab": (c.c_void_p, c.c_void_p),
    "llama_vocab_n_tokens": (c.c_int32, c.c_void_p),
    "llama_context_default_params": (ContextSettings,),
    "llama_init_from_model": (c.c_void_p, c.c_void_p, ContextSettings),
    "llama_get_memory": (c.c_void_p, c.c_void_p),
    "llama_memory_clear": (None, c.c_void_p, c.c_bool),
    "llama_batch_init": (Batch, c.c_int32, c.c_int32, c.c_int32),
    "llama_batch_free": (None, Batch),
    "llama_decode": (c.c_int32, c.c_void_p, Batch),
    "llama_get_logits": (c.POINTER(c.c_float), c.c_void_p),
    "llama_tokenize": (c.c_int32, c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_int32, c.c_bool, c.c_bool),
}  # fmt: skip
"""What is called: the type of the result, then those of the arguments."""


class Runtime:
    """A model opened by llama.cpp, with ``size`` tokens of context, computed by ``threads``."""

    def __init__(self, library: str, path: str, size: int, threads: int) -> None:
        self.lib = c.CDLL(library)
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        self.errors: list[str] = []
        # Kept: the library calls it as long as it is loaded.
        self.log = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(self._log)
        self.lib.llama_log_set(c.cast(self.log, c.c_void_p), None)
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), self.lib.llama_model_default_params())
        if not self.model:
            raise ValueError(f"it does not load the file: {self._words()}")
        self.vocabulary = self.lib.llama_model_get_vocab(self.model)
        self.size = self.lib.llama_vocab_n_tokens(self.vocabulary)
        self.context = self.lib.llama_init_from_model(self.model, self._settings(size, threads))
        if not self.context:
            raise ValueError(f"it makes no context: {self._words()}")

    def _log(self, level: int, text: bytes, _: object) -> None:
        if level >= ERROR:
            self.errors.append(text.decode(errors="replace").strip())

    def _words(self) -> str:
        return " ".join(self.errors) or "it says nothing more"

    def _settings(self, size: int, threads: int) -> ContextSettings:
        settings = self.lib.llama_context_default_params()
        found = (settings.type_k, settings.type_v, settings.scaling, settings.flash)
        if found != (FLOAT16, FLOAT16, AUTOMATIC, AUTOMATIC):
            raise ValueError(f"this version keeps its settings at other places (found {found} there)")
        settings.size = settings.batch = settings.part = size
        settings.threads = settings.threads_batch = threads
        settings.type_k = settings.type_v = FLOAT32
        settings.flash = OFF
        return settings

    def logits(self, ids: list[int], last: bool = False, start: int = 0) -> np.ndarray:
        """Logits (T, V) after each of ``ids``, or (1, V) after the last; ``start``: how many ids came before."""
        if not all(0 <= token < self.size for token in ids):
            raise ValueError(f"ids are from {min(ids)} to {max(ids)}, and the model has {self.size}")
        if not start:
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.count = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.position[i], batch.sequences[i] = token, start + i, 1
            batch.sequence[i][0] = 0
            batch.wanted[i] = not last or i == len(ids) - 1
        status = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if status:
            raise ValueError(f"it does not evaluate {len(ids)} tokens (status {status}): {self._words()}")
        shape = (1 if last else len(ids), self.size)
        return np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), shape).copy()

    def continuation(self, ids: list[int], count: int) -> list[int]:
        """The likeliest next token, ``count`` times."""
        made: list[int] = []
        rows = self.logits(ids, last=True)
        while True:
            made.append(int(rows[0].argmax()))
            if len(made) == count:
                return made
            rows = self.logits(made[-1:], last=True, start=len(ids) + len(made) - 1)

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        data = text.encode()
        room = (c.c_int32 * (len(data) + 8))()
        n = self.lib.llama_tokenize(self.vocabulary, data, len(data), room, len(room), False, False)
        if n < 0:
            raise ValueError(f"it makes no tokens of {text[:40]!r}")
        return list(room[:n])


def losses(logits: np.ndarray, targets: list[int]) -> np.ndarray:
    """Minus log probabilities of ``targets``, float64."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    return np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0] - wide[np.arange(len(targets)), targets]


def answer(library: str, request: dict) -> dict[str, np.ndarray]:
    """What a request asks for; see ``llama_cpp.py``."""
    runtime, what = Runtime(library, request["path"], request["size"], request["threads"]), request["what"]
    if what == "tokens":
        return {str(i): np.array(runtime.tokens(text), np.int64) for i, text in enumerate(request["texts"])}
    if what == "continuation":
        return {"ids": np.array(runtime.continuation(request["ids"], request["count"]))}
    if what == "logits":
        return {"logits": np.stack([runtime.logits(row) for row in request["ids"]])}
    return {"losses": np.stack([losses(runtime.logits(row)[:-1], row[1:]) for row in request["ids"]])}


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as asked:
        wanted = json.load(asked)
    try:
        found = answer(sys.argv[1], wanted)
    except (ValueError, OSError, AttributeError) as error:
        sys.exit(str(error))
    np.savez(sys.argv[3], **found)  # type: ignore[arg-type]
