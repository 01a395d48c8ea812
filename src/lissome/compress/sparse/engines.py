"""A clear word on which engine turns a pattern of zeros into speed on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lissome.compress.sparse.config import parse_pattern
from lissome.engines.table import ENGINES

COMPRESSED = "The file shrinks only when it is compressed (zip, a package): zeros are stored like any other number."

_DENSE = "{engine} multiplies zeros like any other number: its CPU kernels are dense."


@dataclass(frozen=True)
class Word:
    """What an engine makes of a pattern here. faster: whether it can gain speed from the zeros at all; why: the reason, and what to do."""

    engine: str
    faster: bool
    why: str


def speaks(pattern: str, engines: Sequence[str] = tuple(ENGINES), isa: Sequence[str] = ()) -> list[Word]:
    """One word for each engine on `pattern`, on a CPU with the instruction sets `isa` (as `lissome probe` names them).

    torch, torch.compile: no dense kernel looks for zeros; semi-structured 2:4 kernels exist for CUDA alone. ONNX Runtime: none on the CPU.
    OpenVINO: `sparse_weights_decompression_rate` keeps non-zero weights packed and unpacks them in the kernel, which saves memory traffic; its CPU
    plug-in uses it only with AMX, int8 weights and inputs, and matrices whose sides are multiples of 64 (any pattern will do).
    Raises ValueError for an unknown pattern or engine.
    """
    kind = parse_pattern(pattern).kind
    unknown = next((name for name in engines if name not in ENGINES), None)
    if unknown is not None:
        raise ValueError(f'there is no engine called "{unknown}"; known: {", ".join(ENGINES)}')
    return [_word(engine, pattern, kind, any("AMX-INT8" in name.upper().replace("_", "-") for name in isa)) for engine in engines]


def _word(engine: str, pattern: str, kind: str, amx: bool) -> Word:
    if engine == "openvino" and amx:
        why = (
            "OpenVINO can unpack int8 weights with zeros in the kernel here (AMX): quantise to int8-static and measure; linear layers of multiples of 64 only."
        )
        return Word(engine, True, why)
    if engine == "openvino":
        return Word(engine, False, "OpenVINO uses zeros on CPUs with AMX and in int8 only (sparse_weights_decompression_rate), and this CPU has no AMX.")
    why = _DENSE.format(engine=engine)
    if engine.startswith("torch") and pattern == "2:4":
        why += " Its 2:4 kernels run on CUDA alone."
    if kind == "block":
        why += " Whole rows or columns of zero blocks can be cut out: `lissome prune`."
    return Word(engine, False, why)
