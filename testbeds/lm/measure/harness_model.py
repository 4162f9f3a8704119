"""A decoder as a model of lm-evaluation-harness: likelihoods of given texts, and greedy continuations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..text.tokenizer import Tokenizer

LONGEST = 64
"""Tokens generated at most, unless a task says otherwise."""

Pair = tuple[Sequence[int], Sequence[int]]


def scores(
    model: Decoder, pairs: Sequence[Pair], batch: int, autocast: Callable[[], AbstractContextManager] | None = None
) -> list[tuple[float, bool]]:
    """For each pair of ids (context, continuation): log-likelihood of the continuation in nats, and whether each of its
    tokens is the likeliest. Contexts are cut from the left to what the model takes.

    Raises ValueError for an empty context, and for a continuation longer than the model's context.
    """
    length = model.config.context
    for before, after in pairs:
        if not before or len(after) > length:
            raise ValueError(f"a context of {len(before)} and a continuation of {len(after)} tokens; at most {length}")
    # Long ones first, so that a batch is of like lengths and the memory needed shows at once.
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    out: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        rows = [[*pairs[i][0], *pairs[i][1]][-length - 1 :] for i in chosen]
        logs = _log_probabilities(model, [row[:-1] for row in rows], autocast)
        for i, row, log in zip(chosen, rows, logs, strict=True):
            count = len(pairs[i][1])
            if count:
                log = log[len(row) - 1 - count : len(row) - 1]
                target = torch.tensor(row[-count:])
                value = log.gather(1, target[:, None]).double().sum()
                out[i] = (float(value), bool((log.argmax(1) == target).all()))
    return out


@torch.no_grad()
def _log_probabilities(
    model: Decoder, rows: Sequence[Sequence[int]], autocast: Callable[[], AbstractContextManager] | None
) -> Tensor:
    """Log-probabilities of the next token, (rows, longest, vocabulary); a row's own places come first.

    What fills up a row comes after its ids, which a causal model does not see from them.
    """
    filled = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int64)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = torch.tensor(row)
    with autocast() if autocast is not None else nullcontext():
        logits = model(filled.to(next(model.parameters()).device))
    return logits.float().log_softmax(-1).cpu()


def continuation(
    model: Decoder, tokenizer: Tokenizer, ids: Sequence[int], until: Sequence[str], longest: int,
    autocast: Callable[[], AbstractContextManager] | None = None,
) -> str:  # fmt: skip
    """The likeliest next token again and again, up to one of the texts ``until`` (left out), the end of text, or
    ``longest`` tokens."""
    made: list[int] = []
    while len(made) < longest:
        row = [*ids, *made][-model.config.context :]
        following = int(_log_probabilities(model, [row], autocast)[0, -1].argmax())
        if following == tokenizer.end_of_text:
            break
        made.append(following)
        text = tokenizer.decode(made)
        ends = [place for place in map(text.find, until) if place >= 0]
        if ends:
            return text[: min(ends)]
    return tokenizer.decode(made)


LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the largest number of tokens made, in the order in which the harness takes them."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
"""Settings of sampling, without effect where the likeliest token is taken."""
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1, "use_cache": True}
"""Settings that change nothing at this value, the only one that is taken."""


def generation(settings: Mapping[str, Any]) -> tuple[list[str], int]:
    """Texts that end a continuation, and the largest number of its tokens, of a task's ``generation_kwargs``.

    Empty texts, which every text holds, end nothing. Raises ValueError naming the setting that asks for anything but
    the likeliest tokens, is not known, or has a value of the wrong kind.
    """
    for name, value in settings.items():
        if name in NEUTRAL and value not in (None, NEUTRAL[name]):
            raise ValueError(f"generation_kwargs: {name} = {value!r}; valid: {NEUTRAL[name]}")
        if name not in ("until", "do_sample", *LENGTHS, *SAMPLING, *NEUTRAL):
            valid = ", ".join(("until", "do_sample", *LENGTHS, *SAMPLING, *NEUTRAL))
            raise ValueError(f"generation_kwargs: no setting {name!r}; valid: {valid}")
    sample, heat = settings.get("do_sample"), settings.get("temperature")
    if heat is not None and (isinstance(heat, bool) or not isinstance(heat, int | float) or not heat >= 0):
        raise ValueError(f"generation_kwargs: temperature = {heat!r}; valid: a number that is not negative")
    if sample not in (None, False, True):
        raise ValueError(f"generation_kwargs: do_sample = {sample!r}; valid: false")
    # As in the harness: a temperature alone asks for samples, and one of 0 for none.
    wanted = heat != 0 if sample else sample is None and bool(heat)
    narrowed = [name for name in ("top_k", "top_p", "min_p") if settings.get(name) is not None]
    if wanted or (sample is None and heat is None and narrowed):
        name = "do_sample" if sample else "temperature" if heat else narrowed[0]
        raise ValueError(
            f"generation_kwargs: {name} = {settings[name]!r} asks for samples, but continuations are the likeliest "
            "tokens here; valid: do_sample: false"
        )
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
        raise ValueError(f"generation_kwargs: until = {until!r}; valid: a text or a list of texts")
    given = [name for name in LENGTHS if settings.get(name) is not None]
    longest = settings[given[0]] if given else LONGEST
    if type(longest) is not int or longest < 0:
        raise ValueError(f"generation_kwargs: {given[0]} = {longest!r}; valid: a whole number that is not negative")
    return [text for text in until if text], longest


def _first_id(model: Decoder, tokenizer: Tokenizer) -> int:
    """The end of text, after which texts begin; ValueError as :func:`language_model`."""
    if tokenizer.end_of_text is None:
        raise ValueError(f"tokenizer {tokenizer.name} has no end of text, with which texts begin")
    if tokenizer.vocabulary > model.config.vocabulary:
        ids = f"{tokenizer.vocabulary} ids, the model {model.config.vocabulary}"
        raise ValueError(f"tokenizer {tokenizer.name} has {ids}")
    return tokenizer.end_of_text


def language_model(
    model: Decoder, tokenizer: Tokenizer, batch: int, autocast: Callable[[], AbstractContextManager] | None = None
) -> Any:
    """The ``lm_eval`` model; it sees changes of ``model``'s weights.

    Texts begin after the end of text, as documents do in training. ``autocast``: around forward passes. ValueError for
    a tokenizer without end of text, or with more ids than the model.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    first = _first_id(model, tokenizer)

    class LanguageModel(TemplateLM):
        @property
        def eot_token_id(self) -> int:
            return first

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return tokenizer.encode([string])[0].tolist()

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            before, after = super()._encode_pair(context, continuation)
            return [first, *before], after

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return scores(model, [(before, after) for _, before, after in requests], batch, autocast)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            pairs, owners = [], []
            for number, request in enumerate(requests):
                ids = self.tok_encode(request.args[0])
                cut = [
                    make_disjoint_window(one)
                    for one in get_rolling_token_windows(ids, first, model.config.context, context_len=1)
                ]
                pairs += cut
                owners += [number] * len(cut)
            sums = [0.0] * len(requests)
            for number, (value, _) in zip(owners, scores(model, pairs, batch, autocast), strict=True):
                sums[number] += value
            return sums

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            out = []
            for request in requests:
                text, settings = request.args
                until, longest = generation(settings)
                ids = [first, *self.tok_encode(text)]
                out.append(continuation(model, tokenizer, ids, until, longest, autocast))
            return out

    return LanguageModel()
