"""Data of the packaged tasks, made from the addresses that training on the embedded text does not see."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from lotion_theory import Stream

from ....data import load_sotu
from ...text.sequences import HELD_OUT

QUESTIONS, OTHERS = 256, 3
LETTERS, CONTEXT = 5, 12
"""Letters of an answer and words before it, at least."""
PASSAGES, SENTENCES = 64, 4


def addresses() -> list[str]:
    """The held-out addresses."""
    return load_sotu().split("\n\n")[HELD_OUT - 1 :: HELD_OUT]


def sentences(text: str) -> list[str]:
    """The text cut after full stops, question and exclamation marks."""
    return re.split(r"(?<=[.?!]) ", text)


def words(**_: Any) -> dict[str, Any]:
    """Questions: the first words of a sentence (``context``), and four words of equally many letters (``choices``), of
    which number ``label`` goes on. The others are drawn from the same addresses, as often as they occur there."""
    every_sentence = [sentence for address in addresses() for sentence in sentences(address)]
    known: dict[int, Counter[str]] = {}
    for word in re.findall(r"(?<= )[a-z]+(?= )", " ".join(every_sentence)):
        known.setdefault(len(word), Counter())[word] += 1
    draw = Stream(0, "lm/tasks/words").numpy_generator()
    questions = []
    for number in draw.permutation(len(every_sentence)):
        parts = every_sentence[number].split(" ")
        places = [i for i in range(CONTEXT, len(parts)) if re.fullmatch(rf"[a-z]{{{LETTERS},}}", parts[i])]
        if not places:
            continue
        place = int(draw.choice(places))
        answer = parts[place]
        same = known.get(len(answer), Counter())
        others = sorted(set(same) - {answer})
        if len(others) < OTHERS:
            continue
        weights = np.array([same[word] for word in others], float)
        wrong = draw.choice(others, OTHERS, replace=False, p=weights / weights.sum())
        label = int(draw.integers(OTHERS + 1))
        choices = [*map(str, wrong)]
        choices.insert(label, answer)
        questions.append({"context": " ".join(parts[:place]), "choices": choices, "label": label})
        if len(questions) == QUESTIONS:
            break
    return {"test": _dataset(questions)}


def passages(**_: Any) -> dict[str, Any]:
    """Pieces of a few sentences (``text``)."""
    texts = []
    for address in addresses():
        parts = sentences(address)
        texts += [" ".join(parts[i : i + SENTENCES]) for i in range(0, len(parts) - SENTENCES + 1, SENTENCES)]
    order = Stream(0, "lm/tasks/passages").numpy_generator().permutation(len(texts))
    return {"test": _dataset([{"text": texts[number]} for number in order[:PASSAGES]])}


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)
