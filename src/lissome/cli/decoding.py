"""`generate`, `chat`, `bench-decode` and `pack`: small language models on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lissome.cli.emit import JsonFlag, configured, emit_json, show
from lissome.core.errors import Interrupted
from lissome.core.progress import terminal

DecoderArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, or a folder that `lissome pack` wrote.")]
Most = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens at the most.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest alone.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the fewest that hold so much probability.")]
MinP = Annotated[float | None, typer.Option(help="Draw from those at least so probable, as a share of the likeliest.")]
Penalty = Annotated[float, typer.Option(help="Above 1: what was said before becomes less likely.")]
Seed = Annotated[int, typer.Option(help="Seed of the draws.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be given several times.")]
Context = Annotated[int | None, typer.Option(min=1, help="Tokens there is room for; by default what the model was made for, 4,096 at the most.")]
Threads = Annotated[int | None, typer.Option(min=1, help="By default every core.")]
Slide = Annotated[bool, typer.Option("--slide", help="When the room is used up, keep the first tokens and the newer half and go on, instead of ending.")]
MemoryBudget = Annotated[str | None, typer.Option(help='Memory that this process may take, as "300MB": layers that do not fit are read as they are needed.')]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(generate)
    app.command()(chat)
    app.command("bench-decode")(bench_decode)
    app.command()(pack)


def generate(
    model: DecoderArgument,
    prompt: Annotated[str, typer.Option(help="What to go on from.")],
    max_tokens: Most = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    context: Context = None,
    slide: Slide = False,
    memory_budget: MemoryBudget = None,
    threads: Threads = None,
    draft_layers: Annotated[int | None, typer.Option(min=1, help="Draft with the first layers and check with all of them: the same text, sooner.")] = None,
    draft_tokens: Annotated[int, typer.Option(min=1, max=7, help="With --draft-layers: tokens drafted before each check.")] = 4,
    draft_head: Annotated[int | None, typer.Option(min=2, help="With --draft-layers: choose drafts among the first so many tokens of the vocabulary.")] = None,
    json: JsonFlag = False,
) -> None:
    """Go on from a text, and print what follows as it comes."""
    from lissome.engines.decoding.engine import open_engine
    from lissome.engines.decoding.speculative import Drafting
    from lissome.engines.decoding.text import Spoken
    from lissome.engines.decoding.text import generate as pieces

    sampling = _sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed)
    drafting = None if draft_layers is None else configured(Drafting, "drafting", layers=draft_layers, tokens=draft_tokens, head=draft_head)
    engine, spoken = open_engine(model, capacity=context, threads=threads, budget=memory_budget), Spoken()
    _announce(engine)
    overflow: Any = "slide" if slide else "stop"
    coming = pieces(engine, prompt, sampling, most=max_tokens, stop=stop or (), overflow=overflow, spoken=spoken, drafting=drafting)
    text = _spoken(coming, spoken, quiet=json)
    if spoken.reason == "room":
        _note(f"The room for {engine.capacity:,} tokens is used up.\n  Do this:  give --context more, or --slide")
    if json:
        drafts = {"drafted": spoken.drafts.drafted, "accepted": spoken.drafts.accepted} if spoken.drafts else {}
        emit_json({"text": text, "tokens": len(spoken.tokens), "reason": spoken.reason} | drafts)


def chat(
    model: DecoderArgument,
    message: Annotated[list[str] | None, typer.Option(help="Say this and end; may be given several times. Without it, lines are read.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Most = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 40,
    top_p: TopP = 0.9,
    min_p: MinP = None,
    repetition_penalty: Penalty = 1.1,
    seed: Seed = 0,
    stop: Stop = None,
    context: Context = None,
    memory_budget: MemoryBudget = None,
    threads: Threads = None,
) -> None:
    """Talk with a model by its own chat template. An empty line or Ctrl-D ends it."""
    from lissome.engines.decoding.engine import open_engine
    from lissome.engines.decoding.text import Spoken, chat_prompt
    from lissome.engines.decoding.text import generate as pieces

    sampling = _sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed)
    engine = open_engine(model, capacity=context, threads=threads, budget=memory_budget)
    _announce(engine)
    messages, spoken = [{"role": "system", "content": system}] if system else [], Spoken()
    for said in message or _lines():
        messages.append({"role": "user", "content": said})
        spoken = Spoken(read=spoken.read)
        coming = pieces(engine, chat_prompt(engine, messages), sampling, most=max_tokens, stop=stop or (), overflow="slide", spoken=spoken)
        answer = _spoken(coming, spoken)
        messages.append({"role": "assistant", "content": answer})


def bench_decode(
    model: DecoderArgument,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that are generated.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    rounds: Annotated[int, typer.Option(min=6, help="Repetitions.")] = 7,
    memory_budget: MemoryBudget = None,
    threads: Threads = None,
    json: JsonFlag = False,
) -> None:
    """How fast a decoder reads and writes here: tokens per second, with intervals over rounds."""
    from lissome.engines.decoding.bench import bench
    from lissome.engines.decoding.engine import open_engine

    engine = open_engine(model, slots=batch, capacity=prompt_tokens + tokens, threads=threads, budget=memory_budget)
    _announce(engine)
    found = bench(engine, prompt_tokens, tokens, rounds)
    if json:
        emit_json({one.name: one for one in found})
        return
    wide = max(len(one.name) for one in found)
    show("\n".join(f"{one.name:{wide}} {one}, n = {one.n}" for one in found))


def pack(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a Hugging Face folder, or what lissome made of one: parts, experts, codes.")],
    out: Annotated[Path, typer.Option(help="Folder for the decoder.")],
    method: Annotated[
        str | None, typer.Option(help="How float weights become 4 bits: rtn, absolute, mse, awq, gptq or awq+gptq; the last three need text. By default mse.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="File or folder of calibration text.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Or: a language-modelling task, whose calibration split serves.")] = None,
    group: Annotated[int | None, typer.Option(help="Columns that share a scale: 32, 64 or 128. By default 32.")] = None,
    symmetric: Annotated[bool | None, typer.Option("--symmetric/--asymmetric", help="Scales without an offset (Q4_0); with one otherwise (Q4_1).")] = None,
    embedding: Annotated[int | None, typer.Option(help="Bits of the embedding and the head: 4, 8 or 32. By default 8.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of calibration text. By default 8,192.")] = None,
    gguf: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a GGUF file for llama.cpp too; groups of 32.")] = None,
    json: JsonFlag = False,
) -> None:
    """Put a decoder's weights into the layout that the kernel reads. Codes stay exactly as they are; floats are rounded to 4 bits once."""
    from lissome.compress.quantize.decoder import RoundConfig
    from lissome.compress.quantize.packing import as_document, pack_to

    given = {"method": method, "group": group, "symmetric": symmetric, "embedding": embedding, "tokens": tokens}
    config = configured(RoundConfig, "rounding", **given) if any(one is not None for one in given.values()) else None
    with terminal() as progress:
        found = pack_to(out, model, config, text=text, task=task, gguf=gguf, progress=progress)
    if json:
        emit_json(as_document(found))
        return
    lines = [f"Method {found.method or 'codes kept as they are'}", f"Size   {found.mb:.1f} MB of matrices, {found.mb_float:.1f} MB in float32"]
    show("\n".join([*lines, f"Model  {out}", *([f"GGUF   {gguf}"] if gguf else [])]))


def _sampling(**options: Any) -> Any:
    from lissome.engines.decoding.sampling import Sampling

    return configured(Sampling, "sampling", **options)


def _announce(engine: Any) -> None:
    """How a memory budget is used, and how long a token is going to take."""
    if engine.streamed is None:
        return
    _note(f"{engine.streamed.plan}.\nPredicted {engine.streamed.predicted()} a token.")


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _spoken(pieces: Any, spoken: Any, quiet: bool = False) -> str:
    """The whole text; printed piece by piece on the way. After Ctrl-C what was printed stands, on a line of its own."""
    found: list[str] = []
    try:
        for piece in pieces:
            found.append(piece)
            if not quiet:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        said = {"text": "".join(found), "tokens": len(spoken.tokens), "reason": "interrupted"}
        raise Interrupted(f"Interrupted after {len(spoken.tokens):,} tokens; the text so far stands.", found=said) from None
    finally:
        if not quiet:
            sys.stdout.write("\n")
            sys.stdout.flush()
    return "".join(found)


def _lines() -> Any:
    """Lines from the keyboard, until an empty one."""
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not said.strip():
            return
        yield said
