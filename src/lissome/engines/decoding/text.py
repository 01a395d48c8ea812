"""Text in, text out: pieces of text as they come, stop strings, chat templates, and what happens when the room is used up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lissome.core.errors import BadConfig, BadInput, BadModel
from lissome.engines.decoding.engine import Engine
from lissome.engines.decoding.sampling import Sampler, Sampling
from lissome.engines.decoding.speculative import Drafting, Speculative
from lissome.kernels.decoder.arrays import Array

Overflow = Literal["stop", "slide"]
"""When a sequence fills its room: end there, or keep its first tokens and its newer half and go on. What is kept is read anew, at the places 0, 1, 2 ... that
it then has: the logits are those of a text that never had more in it."""
UNFINISHED = 3
"""Bytes of a character that may have come while it is not whole."""
SINKS = 4
"""First tokens that are kept when a text slides: models put much of their attention there, whatever they say (Xiao et al. 2023)."""


@dataclass
class Spoken:
    """What has come so far. tokens: generated ones; reason: why it ended: "stop", "length", "room" or "". drafts: how drafting went, if any.

    read: the tokens that stand in the engine's first slot, from place 0 on: those that a prompt begins with are not read again. Hand it on
    (`Spoken(read=before.read)`) where one prompt goes on from another, as in a chat, and nothing else uses that slot between them.
    """

    tokens: list[int] = field(default_factory=list)
    reason: str = ""
    drafts: Speculative | None = None
    read: list[int] = field(default_factory=list)


def generate(
    engine: Engine,
    prompt: str,
    sampling: Sampling,
    *,
    most: int = 256,
    stop: Sequence[str] = (),
    overflow: Overflow = "stop",
    spoken: Spoken | None = None,
    drafting: Drafting | None = None,
) -> Iterator[str]:
    """Pieces of text that follow `prompt`, as they come.

    most: tokens at the most. stop: texts that end it, not given out themselves. spoken: filled on the way. drafting: by the model's own early layers.
    Raises BadInput for a prompt without tokens, or longer than the room where it may not slide; on the way BadModel for logits that are not finite,
    naming the step.
    """
    tokens = engine.tokenizer.encode(prompt, add_special_tokens=False).ids
    begin = engine.about.begin_token
    tokens = [begin, *tokens] if begin is not None and tokens[:1] != [begin] else tokens
    if not tokens:
        raise BadInput("the prompt has 0 tokens", expected="at least one", do="give some text")
    if len(tokens) > engine.capacity and overflow == "stop":
        raise BadInput(f"the prompt has {len(tokens):,} tokens, and there is room for {engine.capacity:,}", do="shorten it, give --context more, or --slide")
    tokens = _slid(tokens, engine.capacity) if len(tokens) > engine.capacity else tokens
    spoken = spoken if spoken is not None else Spoken()
    sampler = Sampler(sampling)
    spoken.drafts = Speculative(engine, sampler, drafting) if drafting else None
    return _pieces(engine, tokens, spoken.drafts or sampler, most, tuple(stop), overflow, spoken)


def _pieces(
    engine: Engine, tokens: list[int], sampler: Sampler | Speculative, most: int, stop: tuple[str, ...], overflow: Overflow, spoken: Spoken
) -> Iterator[str]:
    ends, text, reader = engine.ends(), _Text(engine, stop, tokens), spoken.drafts or engine
    logits = _begun(reader, tokens, spoken)
    kept = list(tokens)
    while len(spoken.tokens) < most:
        token = _drawn(sampler, logits, kept, len(spoken.tokens))
        if token in ends:
            spoken.reason = "stop"
            break
        spoken.tokens.append(token)
        kept.append(token)
        piece, over = text.add(token)
        if piece:
            yield piece
        if over:
            spoken.reason = "stop"
            return
        if len(spoken.tokens) == most:
            continue  # what follows is not asked for, so it is not computed
        if len(kept) > engine.capacity:
            if overflow == "stop":
                spoken.reason = "room"
                break
            kept = _slid(kept, engine.capacity)
            logits = _begun(reader, kept, spoken)
        else:
            logits = reader.read([token], start=len(kept) - 1)
            if spoken.drafts is None:
                spoken.read.append(token)
    else:
        spoken.reason = "length"
    rest = text.rest()
    if rest:
        yield rest


def _begun(reader: Engine | Speculative, tokens: list[int], spoken: Spoken) -> Array:
    """Logits after a text, of which only what follows its beginning that the slot holds already is read; with drafts, which read ahead, all of it."""
    if spoken.drafts is not None:
        spoken.read.clear()
        return reader.read(tokens)
    same = next((at for at, (old, new) in enumerate(zip(spoken.read, tokens, strict=False)) if old != new), min(len(spoken.read), len(tokens)))
    same = min(same, len(tokens) - 1)  # logits are those of a token that is read
    del spoken.read[same:]  # what stands behind is written over
    logits = reader.read(tokens[same:], start=same)
    spoken.read.extend(tokens[same:])
    return logits


def _drawn(sampler: Sampler | Speculative, logits: Array, kept: list[int], step: int) -> int:
    """The next token; what is wrong is said with the step at which it came."""
    where = f"token {step + 1} of the answer, place {len(kept)}"
    try:
        return sampler.draw(logits, kept)
    except BadModel as error:
        raise BadModel(error.what, where=where, do=error.do) from error


def _slid(tokens: list[int], capacity: int) -> list[int]:
    """The first tokens and the newest, half the room in all."""
    sinks = min(SINKS, capacity // 4)
    return tokens[:sinks] + tokens[len(tokens) - max(1, capacity // 2 - sinks) :]


def _end_of(engine: Engine) -> str:
    """The text of the token that ends a turn: templates of the Zephyr kind write it behind each message."""
    ends = engine.about.end_tokens
    return (engine.tokenizer.id_to_token(ends[0]) if ends else None) or ""


class _Text:
    """Tokens to text, held back while a character is not whole or while it may be the beginning of a stop string."""

    def __init__(self, engine: Engine, stop: tuple[str, ...], before: Sequence[int]) -> None:
        self.engine, self.stop = engine, tuple(one for one in stop if one)
        self._from(before)
        self.begin = self.given  # a stop string begins in the answer

    def _from(self, before: Sequence[int]) -> None:
        """Begin anew behind the last token of `before`: some tokenizers drop the space before the first token that they decode."""
        self.tokens = list(before[-1:])
        self.given = len(self.engine.tokenizer.decode(self.tokens, skip_special_tokens=False))  # characters of the decoded tokens that were given out

    def add(self, token: int) -> tuple[str, bool]:
        """What can be given out now, and whether a stop string came."""
        self.tokens.append(token)
        whole = self.engine.tokenizer.decode(self.tokens, skip_special_tokens=False)
        found = [at for one in self.stop if (at := whole.find(one, max(self.begin, self.given - len(one)))) >= 0]
        if found:
            return self._upto(whole, min(found)), True
        # Bytes that begin a character decode to replacement characters, one or one a byte, until the rest comes; those before them stand, whole or broken.
        broken = min(len(whole) - len(whole.rstrip("\ufffd")), UNFINISHED)
        settled = whole[: len(whole) - broken]
        held = broken + max((size for one in self.stop for size in range(1, len(one)) if settled.endswith(one[:size])), default=0)
        piece = self._upto(whole, len(whole) - held)
        if not held and len(self.tokens) > 64 and whole.endswith((" ", "\n", ".")):  # a long text is not decoded from its beginning each time
            self._from(self.tokens)
            self.begin = 0
        return piece, False

    def rest(self) -> str:
        """What was held back."""
        whole = self.engine.tokenizer.decode(self.tokens, skip_special_tokens=False)
        return self._upto(whole, len(whole))

    def _upto(self, whole: str, end: int) -> str:
        piece, self.given = whole[self.given : end], max(self.given, end)
        return piece


def chat_prompt(engine: Engine, messages: Sequence[dict[str, str]]) -> str:
    """The prompt for some messages ({"role", "content"}) by the model's own template. Raises BadConfig where it has none, or the template fails."""
    template = engine.about.chat_template
    if not template:
        raise BadConfig("this model has no chat template", do="use `lissome generate`")
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        return str(made.render(messages=list(messages), add_generation_prompt=True, bos_token="", eos_token=_end_of(engine)))
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:  # a template is a program
        raise BadConfig(f"the model's chat template fails: {error}") from error
