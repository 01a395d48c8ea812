"""Other projects' telemetry stays off: lissome sends nothing, and neither does what it calls."""

from __future__ import annotations

import sys


def silence_telemetry() -> None:
    """Keep OpenVINO's and NNCF's usage reports from ever loading: with their package blocked, both fall back to a stub."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
