"""The chance that an idle endpoint is used in a given slot: one logistic model for all endpoints. Pure.

Most features matter differently after a short idle time than after a long one, so the model has their weights once for all ages, and
twice again as corrections from `_AGES` on, drawn towards none by the ridge. Before there is enough to learn from, a closed form of the
same features stands in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.demand import logistic
from agent.demand.arrays import Flags, Floats, chance
from agent.demand.features import AGE_COLUMN, NAMES
from agent.demand.logistic import Weights
from agent.demand.samples import Training

MIN_RETURNS = 100
_AGES = (12, 36)  # slots: 2 and 6 hours
_RIDGE = 200.0
_CLIP = 4.0  # standard deviations
_BASE, _WEEKDAY, _AGE = (NAMES.index(name) for name in ("base", "hazard_weekday", "hazard_exact_age"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """A fitted model: how to make its columns of features, and their weights."""

    used: Flags  # features that are looked at
    mean: Floats
    scale: Floats
    weights: Weights
    rows: int

    def probability(self, columns: Floats) -> Floats:
        """Return for each row of features the chance of a return."""
        return logistic.probability(self.expand(columns), self.weights)

    def expand(self, columns: Floats) -> Floats:
        """Return the model's columns: standardised features, the same again at higher ages, and a constant."""
        age = columns[:, AGE_COLUMN]
        plain = np.clip((columns[:, self.used] - self.mean) / self.scale, -_CLIP, _CLIP)
        plain = np.concatenate([plain, np.ones((len(plain), 1), np.float32)], axis=1)
        older = [plain * (age > np.log(slots))[:, None] for slots in _AGES]
        return np.concatenate([*older, plain], axis=1, dtype=np.float32)


def fit(training: Training, used: Flags, before: Hazard | None) -> Hazard | None:
    """Return the model fitted to these rows, beginning at the model before; None where they teach too little, or nothing finite."""
    if training.returned.sum() < MIN_RETURNS:
        return None
    columns = training.columns[:, used]
    mean, scale = columns.mean(axis=0), columns.std(axis=0) + 0.01
    width = (len(_AGES) + 1) * (int(used.sum()) + 1)
    start = before.weights if before else np.zeros(width)
    if not before:
        rate = float(training.counts @ training.returned) / float(training.counts.sum())
        start[-1] = np.log(rate / (1 - rate))
    model = Hazard(used=used, mean=mean, scale=scale, weights=start, rows=len(columns))
    weights = logistic.fit(training.columns, training.returned, training.counts, model.expand, start, _RIDGE)
    if not np.isfinite(weights).all():
        return None
    return Hazard(used=used, mean=mean, scale=scale, weights=weights, rows=len(columns))


def closed_form(columns: Floats) -> Floats:
    """Return the chance of a return without a fit: the hazard of the weekday and time, corrected by that of the idle age."""
    score = columns[:, _WEEKDAY] + 0.7 * (columns[:, _AGE] - columns[:, _BASE])
    return chance(score)
