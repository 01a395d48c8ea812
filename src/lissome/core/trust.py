"""Code that a file names is run only if the user named it too.

A folder from someone else may name any function of any package, with arguments of its own choice (`subprocess:getoutput`). So a target that is read
from a file must have been named in this process (as a model or a task), be listed in LISSOME_TRUST, or be one of lissome's own below.
"""

from __future__ import annotations

import os

from lissome.core.errors import BadInput

VARIABLE = "LISSOME_TRUST"
OWN = frozenset({"lissome.nn.cnn:small_cnn", "lissome.data.digits:digits_task", "lissome.nn.depth.store:reopened", "lissome.nn.models.assembly:assembled"})
"""Function by function, never all of lissome: some of its functions call what their arguments name."""
_named: set[str] = set()  # consent is the user's, and so the process's: it outlives the call in which it was given


def name_target(target: str) -> None:
    """Note that the user named the code `target` ("package.module:function") in this process."""
    _named.add(target)


def check_target(target: str, where: str, error: type[BadInput]) -> None:
    """Raise `error` unless the user named `target`, which was read from the file at `where`."""
    listed = {part.strip() for part in os.environ.get(VARIABLE, "").split(",")} - {""}
    if target not in OWN | _named | listed:
        raise error(f"it needs the code {target}, which was not named by you.", where=where, do=f"if you trust it: {VARIABLE}={target} lissome ...")
