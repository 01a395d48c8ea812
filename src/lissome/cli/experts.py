"""`experts` and `split-experts`: what a model's experts do, and experts made of a dense model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, configured, emit_json, show
from lissome.core.errors import BadInput
from lissome.core.progress import terminal

if TYPE_CHECKING:
    from lissome.compress.experts import Split
    from lissome.nn.moe.specialise import ExpertUse, LayerUse


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(experts)
    app.command("split-experts")(split_experts)


def experts(
    model: ModelArgument,
    domain: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PLACE", help="A domain's text, a file or folder; by default code, law, finance, general. Repeatable.")
    ] = None,
    windows: Annotated[int, typer.Option(min=2, help="Windows of text for each domain.")] = 32,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 256,
    layer: Annotated[str | None, typer.Option(help="The layer whose table of experts and domains is shown; by default the one furthest from chance.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show how evenly MODEL's experts are used, which are dead, and whether they specialise: a table of experts and domains, with a test."""
    from lissome.data.domains import domain_texts, domain_windows, given_texts
    from lissome.data.tokens import open_tokenizer
    from lissome.nn.load import load_model
    from lissome.nn.moe.specialise import expert_use
    from lissome.nn.moe.watch import expert_layers

    places = _places(domain or [])
    with terminal() as progress:
        loaded = load_model(model)
        names = list(expert_layers(loaded.module))  # before any text is fetched
        if layer is not None and layer not in names:
            raise BadInput(f'--layer: there are no experts called "{layer}"', expected=", ".join(names[:4]) + (", ..." if names[4:] else ""))
        if loaded.directory is None:
            raise BadInput("the model came without a tokenizer, so it cannot be given text", where=loaded.ref, do="give a folder that holds tokenizer.json")
        tokenizer, _ = open_tokenizer(loaded.directory, loaded.ref)
        texts = given_texts(places) if places else domain_texts(progress=progress, half="odd")  # `split-experts` reads the even ones
        used = expert_use(loaded.module, domain_windows(texts, tokenizer, length, windows), progress=progress)
    emit_json(used) if json else show(*_told(used, layer))


def split_experts(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    experts: Annotated[int, typer.Option(help="Experts that each feed-forward network is divided among.")] = 16,
    active: Annotated[int, typer.Option(help="Experts that each token takes.")] = 4,
    shared: Annotated[int, typer.Option(help="Neurons that every token takes.")] = 0,
    cluster: Annotated[str, typer.Option(help="What brings neurons together: activations, weights or random.")] = "activations",
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Task whose calibration split is used; by default texts of four domains.")] = None,
    group: Annotated[int | None, typer.Option(help="Quantise the experts to 4 bits in groups of 32, 64 or 128.")] = None,
    json: JsonFlag = False,
) -> None:
    """Split the feed-forward networks of MODEL into experts, fit the routers, and write a folder. It is not trained: say how far off it is."""
    from lissome.compress.experts.config import SplitConfig

    options = {"experts": experts, "active": active, "shared": shared, "cluster": cluster, "group": group}
    config = configured(SplitConfig, "splitting", **options)
    from lissome.compress.experts import split_to

    with terminal() as progress:
        found = split_to(out, model, config, task, progress=progress)
    emit_json(found) if json else show(*_split(found))


def _places(given: list[str]) -> dict[str, Path]:
    found = {}
    for one in given:
        name, sign, place = one.partition("=")
        if not (name and sign and place):
            raise BadInput(f'--domain: "{one}" is no domain', expected="NAME=PLACE, such as law=contracts.txt")
        found[name] = Path(place).expanduser()
    if len(found) == 1:
        raise BadInput("--domain: one domain cannot be compared with others", do="give at least two")
    return found


def _told(used: ExpertUse, layer: str | None) -> list[Any]:
    """The table of layers, and one layer's experts by domain."""
    from rich.table import Table

    table = Table("layer", "max/mean load", "entropy", "dead", "information", "by chance", "p", box=None, pad_edge=False)
    for one in used.layers:
        test = one.dependence
        numbers = (f"{one.load.max_over_mean:.2f}", f"{one.load.entropy:.3f}", str(len(one.load.dead)))
        table.add_row(one.name, *numbers, f"{test.bits:.4f}", f"{test.chance:.4f}", f"{test.p_family:.3g}")
    shown = next((one for one in used.layers if one.name == layer), used.strongest)
    test = shown.dependence
    verdict = "its experts specialise" if test.dependent else "no specialisation can be told from chance"
    windows = ", ".join(f"{name} {count}" for name, count in used.windows.items())
    told = f"a choice tells {test.bits:.4f} bits about the domain, by chance {test.mean_chance:.4f} on average"
    lines = [
        f"{shown.name}: {verdict} ({told}; p = {test.p_family:.3g}, allowing for all {len(used.layers)} layers that were looked at).",
        f"{used.tokens:,} tokens, windows of {windows}; whole windows were permuted, which share no document.",
    ]
    return [table, _experts(shown), "\n".join(lines)]


def _experts(shown: LayerUse) -> Any:
    """Share of the choices in each domain that each expert gets."""
    from rich.table import Table

    table = Table("expert", *shown.shares, "all", box=None, pad_edge=False)
    total = max(1, sum(shown.load.counts))
    for number, count in enumerate(shown.load.counts):
        table.add_row(str(number), *(f"{shares[number]:.1%}" for shares in shown.shares.values()), f"{count / total:.1%}")
    return table


def _split(found: Split) -> list[Any]:
    from rich.table import Table

    table = Table("layer", "off", "largest", "by chance", "agreement", "scale", box=None, pad_edge=False)
    for fit in found.fits:
        table.add_row(fit.name, f"{fit.router:.3f}", f"{fit.largest:.3f}", f"{fit.random:.3f}", f"{fit.agreement:.0%}", f"{fit.scale:.2f}")
    lines = [
        "off: |difference| / |output| of the dense network, with the experts the router chooses, those of the largest outputs, and any; on texts held out.",
        f"Neurons that a token reads  {found.read:.1%}",
        f"Model                       {found.folder} (not trained since: `lissome fine-tune` brings back much of it)",
    ]
    return [table, "\n".join(lines)]
