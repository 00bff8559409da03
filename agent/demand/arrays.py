"""Names for the arrays of the forecast. A row is an endpoint unless said otherwise."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


def logit(share: Floats) -> Floats:
    """Return ln(p / (1 - p)), for p within 1e-5 and 1 - 1e-5."""
    clipped = np.clip(share, 1e-5, 1 - 1e-5)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def chance(logit_: Floats) -> Floats:
    """Return the share whose logit this is; both ends are cut at 30."""
    found: Floats = 1 / (1 + np.exp(-np.clip(logit_, -30, 30)))
    return found


def decay(half_life_slots: float) -> float:
    """Return the factor by which a sum shrinks in one slot."""
    return float(0.5 ** (1 / half_life_slots))
