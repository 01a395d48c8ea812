"""Tasks that can be solved only by looking far back, generated: the same seed gives the same examples.

`mqar_task`: which value stood behind a key (a decoder trained from scratch). `passkey_task`: a number hidden in a long text (a decoder that reads English).
`needle_task`: which symbol stands far from the beginning, once, and `matching_task`: whether two symbols far apart are the same (encoders).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lissome.core.cache import digest, file_sha256
from lissome.core.errors import BadConfig
from lissome.core.task import LANGUAGE, SPLITS, Padding, Split, SplitName, Task, correct
from lissome.data.packing import IGNORED
from lissome.data.tokens import open_tokenizer

VERSION = 1
"""Part of every fingerprint: raise it when the same sizes and seed would give other examples."""
SIZES = {"train": 2000, "calibration": 100, "validation": 300, "test": 500}

OPENING = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the important information there."
FILLER = (" The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.", " There and back again.")
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = " What is the pass key? The pass key is {key}."
DIGITS = 5

PAD, FIRST, MARKER, DECOY, SYMBOLS = 0, 1, 2, 3, 4
"""Tokens of `matching`: padding, the token that stands first, the two markers, and where the symbols begin."""


def mqar(n: int, length: int, pairs: int, vocabulary: int = 8192, seed: int = 0, power: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Multi-query associative recall (Arora et al. 2023, "Zoology"): ids int64 [n, length], targets int64 [n, length].

    `pairs` keys, each followed by its value, then each key once more, at distances that follow a power law (exponent power - 1: most soon, some late),
    among random tokens. At a repeated key the target is its value; everywhere else IGNORED. Keys are tokens 1 to vocabulary / 2 - 1, values those above.
    Raises BadConfig for sizes that do not fit.
    """
    half, space = vocabulary // 2, (length - 2 * pairs) // 2
    if pairs < 1 or space < pairs or half <= pairs:
        raise BadConfig(
            f"{pairs} pairs do not fit into {length} tokens of {vocabulary:,} kinds",
            expected="length >= 4 * pairs, and more than 2 * pairs + 2 kinds of tokens",
        )
    rng = np.random.default_rng([seed, 1])
    odds = power * np.arange(1, space + 1) ** (power - 1.0)
    ids, targets = rng.integers(1, vocabulary, (n, length)), np.full((n, length), IGNORED, dtype=np.int64)
    for row in range(n):
        keys = rng.choice(np.arange(1, half), pairs, replace=False)
        values = rng.choice(np.arange(half, vocabulary), pairs, replace=False)
        places = 2 * pairs + 2 * rng.choice(space, pairs, replace=False, p=odds / odds.sum())
        ids[row, 0 : 2 * pairs : 2], ids[row, 1 : 2 * pairs : 2] = keys, values
        ids[row, places], targets[row, places] = keys, values
    return ids.astype(np.int64), targets


def passkey(tokenizer: Any, length: int, depth: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A text of exactly `length` tokens with a number of five digits in it, and the question for it (Mohtashami and Jaggi 2023): ids, targets int64 [length].

    depth: where the number stands, 0 right after the opening, 1 right before the question. The text ends with the answer; targets are its digits' tokens at
    the places before them and IGNORED elsewhere, so that a model which foretells all of them would have said them by itself, greedily.
    tokenizer: of the `tokenizers` library. Raises BadConfig for a depth outside of 0..1 or a length that holds no filler.
    """
    if not 0 <= depth <= 1:
        raise BadConfig(f"a depth of {depth} lies outside of the text", expected="0 to 1")
    rng = np.random.default_rng([seed, 2, length, round(depth * 1000)])
    key = "".join(map(str, [rng.integers(1, 10), *rng.integers(0, 10, DIGITS - 1)]))

    def encode(text: str) -> Any:
        return tokenizer.encode(text, add_special_tokens=False)

    opening, needle, question = encode(OPENING), encode(NEEDLE.format(key=key)), encode(QUESTION.format(key=key))
    room = length - len(opening.ids) - len(needle.ids) - len(question.ids)
    sentences = [encode(sentence).ids for sentence in FILLER]
    if room < sum(map(len, sentences)):
        raise BadConfig(f"{length} tokens are too few for a passkey", expected=f"at least {length - room + sum(map(len, sentences))} with this tokenizer")
    filler: list[int] = []
    ends = [0]
    while len(filler) < room:
        filler += sentences[(len(ends) - 1) % len(sentences)]
        ends.append(len(filler))
    excess = len(filler) - room  # the first sentence is cut at its front, so that the rest stays whole
    ends = [0, *(end - excess for end in ends if end > excess)]
    split = min(ends, key=lambda end: abs(end - depth * room))
    filler = filler[excess:]
    ids = np.array([*opening.ids, *filler[:split], *needle.ids, *filler[split:], *question.ids], dtype=np.int64)
    begin = QUESTION.format(key=key).rindex(key)
    answer = [i for i, (first, last) in enumerate(question.offsets) if last > begin and first < begin + DIGITS and last > first]
    places = len(ids) - len(question.ids) + np.array(answer)
    targets = np.full(length, IGNORED, dtype=np.int64)
    targets[places - 1] = ids[places]
    return ids, targets


def matching(
    n: int, length: int, apart: int, *, symbols: int = 16, distractors: int = 8, vocabulary: int = 256, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Do the two marked symbols match? ids int64 [n, length] that begin with FIRST, labels int64 [n] (1: yes; half of them, in random order).

    Two MARKER tokens stand at least `apart` places from each other, each followed by a symbol; the label is whether the symbols are equal. `distractors` DECOY
    tokens are followed by symbols too, which mean nothing, and symbols also stand alone in the filler. Neither half of a text alone says anything.
    Raises BadConfig for sizes that do not fit.
    """
    slots = length // 2 - 1
    if symbols < 2 or vocabulary < SYMBOLS + symbols or distractors < 0 or slots < distractors + 2 or not 2 <= apart <= 2 * (slots - 1):
        raise BadConfig(
            f"markers {apart} places apart and {distractors} distractors do not fit into {length} tokens of {vocabulary} kinds with {symbols} symbols",
            expected=f"2 <= apart <= {max(2, 2 * (slots - 1))}, at least 2 symbols, and {SYMBOLS} kinds of tokens more than symbols",
        )
    rng = np.random.default_rng([seed, 3])
    ids = rng.integers(SYMBOLS, vocabulary, (n, length))
    ids[:, 0] = FIRST
    labels = rng.permutation(np.arange(n) % 2)
    gap = -(-apart // 2)  # in slots of two tokens: a marker and its symbol
    for row in range(n):
        first = int(rng.integers(0, slots - gap))
        last = int(rng.integers(first + gap, slots))
        others = rng.permutation(np.delete(np.arange(slots), [first, last]))[:distractors]
        one = int(rng.integers(symbols))
        other = one if labels[row] else (one + int(rng.integers(1, symbols))) % symbols
        for slot, mark, symbol in [(first, MARKER, one), (last, MARKER, other), *((int(s), DECOY, int(rng.integers(symbols))) for s in others)]:
            ids[row, 1 + 2 * slot : 3 + 2 * slot] = mark, SYMBOLS + symbol
    return ids.astype(np.int64), labels.astype(np.int64)


def needle(n: int, length: int, apart: int, *, symbols: int = 2, vocabulary: int = 256, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which symbol is it? ids int64 [n, length] that begin with FIRST, labels int64 [n], each symbol about as often.

    One of `symbols` tokens stands once, at least `apart` places from the first token, in filler that has none; the label is which. Much easier than
    `matching`: whoever reads the answer at the first token has to see that far, and nothing more. Raises BadConfig for sizes that do not fit.
    """
    if symbols < 2 or vocabulary <= SYMBOLS + symbols or not 1 <= apart < length:
        raise BadConfig(
            f"a symbol {apart} places from the first does not fit into {length} tokens of {vocabulary} kinds with {symbols} symbols",
            expected=f"1 <= apart < {length}, at least 2 symbols, and more than {SYMBOLS} kinds of tokens beside them",
        )
    rng = np.random.default_rng([seed, 4])
    ids = rng.integers(SYMBOLS + symbols, vocabulary, (n, length))
    ids[:, 0] = FIRST
    labels = rng.permutation(np.arange(n) % symbols)
    ids[np.arange(n), rng.integers(apart, length, n)] = SYMBOLS + labels
    return ids.astype(np.int64), labels.astype(np.int64)


def mqar_task(length: int = 256, pairs: int = 16, vocabulary: int = 8192, sizes: dict[SplitName, int] | None = None, seed: int = 0) -> Task:
    """MQAR as a Task for a decoder: the score is the share of repeated keys at which the value is foretold."""

    def make(count: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        return mqar(count, length, pairs, vocabulary, 10 * seed + part)

    return _task("mqar", LANGUAGE, make, sizes, share_foretold, [length, pairs, vocabulary, seed])


def passkey_task(
    tokenizer_dir: Path, length: int = 1024, depths: Sequence[float] = (0.1, 0.5, 0.9), sizes: dict[SplitName, int] | None = None, seed: int = 0
) -> Task:
    """Passkeys as a Task for a decoder, its depths in turn: the score is 1 where greedy decoding says all digits. Raises BadTask without a tokenizer."""
    tokenizer, path = open_tokenizer(tokenizer_dir, str(tokenizer_dir))

    def make(count: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        made = [passkey(tokenizer, length, depths[i % len(depths)], (10 * seed + part) * 100_000 + i) for i in range(count)]
        return np.stack([ids for ids, _ in made]), np.stack([targets for _, targets in made])

    return _task("passkey", LANGUAGE, make, sizes, all_foretold, [length, list(depths), seed, file_sha256(path)], exact=True)


def matching_task(
    length: int = 4096,
    apart: int = 2048,
    *,
    symbols: int = 16,
    distractors: int = 8,
    vocabulary: int = 256,
    sizes: dict[SplitName, int] | None = None,
    seed: int = 0,
) -> Task:
    """Matching symbols as a Task for an encoder with two outputs: right or wrong."""

    def make(count: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        return matching(count, length, apart, symbols=symbols, distractors=distractors, vocabulary=vocabulary, seed=10 * seed + part)

    sizing = [length, apart, symbols, distractors, vocabulary, seed]
    return _task("matching", "text-classification", make, sizes, correct, sizing, exact=True, classes=("different", "same"))


def needle_task(
    length: int = 1024, apart: int = 512, *, symbols: int = 2, vocabulary: int = 256, sizes: dict[SplitName, int] | None = None, seed: int = 0
) -> Task:
    """The needle as a Task for an encoder with an output for each symbol: right or wrong."""

    def make(count: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        return needle(count, length, apart, symbols=symbols, vocabulary=vocabulary, seed=10 * seed + part)

    sizing, classes = [length, apart, symbols, vocabulary, seed], tuple(f"symbol {i}" for i in range(symbols))
    return _task("needle", "text-classification", make, sizes, correct, sizing, exact=True, classes=classes)


def share_foretold(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Share of the targets that have the largest logit: outputs [n, length, vocabulary], targets [n, length] -> [n]."""
    asked = targets != IGNORED
    hits = (np.asarray(outputs).argmax(-1) == targets) & asked
    found: np.ndarray = hits.sum(-1) / np.maximum(asked.sum(-1), 1)
    return found


def all_foretold(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1.0 where all targets have the largest logit, else 0.0: outputs [n, length, vocabulary], targets [n, length] -> [n]."""
    found: np.ndarray = (share_foretold(outputs, targets) == 1).astype(np.float64)
    return found


def _collate(examples: Sequence[Any], padding: Padding) -> dict[str, np.ndarray]:
    """A batch of ids [n, length]; `padding` changes nothing."""
    return {"input_ids": np.stack(examples)}


def _task(
    name: str,
    kind: str,
    make: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    sizes: dict[SplitName, int] | None,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    sizing: list[Any],
    *,
    exact: bool = False,
    classes: tuple[str, ...] = (),
) -> Task:
    """Four splits, each from a seed of its own."""
    counts: dict[Any, int] = {**SIZES, **(sizes or {})}
    splits: dict[SplitName, Split] = {}
    for part, split in enumerate(SPLITS):
        ids, targets = make(counts[split], part)
        splits[split] = Split(list(ids), targets)
    key = digest(name, VERSION, sizing, counts)
    return Task(name, kind, splits, _collate, score, key, f"lissome.data.long_range:{name}_task", exact=exact, classes=classes)
