"""How many pods an endpoint is to have at least while a window lasts, and what to write for that. Pure.

An autoscaler is raised from when the window is due (its start less the lead) until it ends. What stood there before is kept on the
autoscaler itself, so that any planner can put it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.core.assignment import Window
from agent.core.refs import EndpointKey
from agent.core.units import format_duration
from agent.demand.endpoint import Endpoint, MinScale, WorkloadRef
from agent.demand.windows import softened
from agent.kube.scalers import HPA, KEDA, KNATIVE, NOTHING, ScalerView

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_ORDER = (KNATIVE, KEDA, HPA)  # KEDA makes an HorizontalPodAutoscaler of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What an endpoint's min-scale asks for; `gpus` is what one pod takes."""

    key: EndpointKey
    workload: WorkloadRef
    mode: MinScale
    pods: int
    gpus: int
    windows: tuple[Window, ...]

    def open_window(self, now: datetime) -> Window | None:
        """Return the window that is due or open now."""
        return next((w for w in self.windows if w.ready_by <= now < w.until), None)

    def pods_in(self, window: Window) -> int:
        """Return how many pods a window needs; on a holiday a third, as of nodes."""
        return -(-self.pods // 3) if softened(window) else self.pods

    def next_change(self, now: datetime) -> datetime | None:
        """Return when the next window becomes due or ends."""
        return min((t for w in self.windows for t in (w.ready_by, w.until) if t > now), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One write: `least` is what to apply, None to let go; `raised_from` the record to leave, "" to remove it."""

    scaler: ScalerView
    least: int | None
    raised_from: str


def scalings(endpoints: Iterable[Endpoint], windows: Mapping[EndpointKey, tuple[Window, ...]]) -> tuple[Scaling, ...]:
    """Return the endpoints whose minimum is to follow their windows."""
    return tuple(
        Scaling(
            key=e.key,
            workload=e.workload,
            mode=e.min_scale,
            pods=e.replicas,
            gpus=e.gpus,
            windows=windows.get(e.key, ()),
        )
        for e in endpoints
        if e.min_scale is not MinScale.OFF
    )


def scaler_of(scaling: Scaling, scalers: Iterable[ScalerView]) -> ScalerView | None:
    """Return the autoscaler of an endpoint's workload; of several the one that decides, the newest of a kind."""
    where = (scaling.workload.namespace, (scaling.workload.kind, scaling.workload.name))
    mine = [s for s in scalers if (s.namespace, s.target) == where and not (s.knob is HPA and s.made)]
    return min(mine, key=lambda s: (_ORDER.index(s.knob), -(s.created or _LONG_AGO).timestamp(), s.name), default=None)


def raised(scaler: ScalerView, pods: int) -> Step | None:
    """Return what gives a workload `pods` at least, within its maximum; None if it has them already.

    Never less than what was before: that somebody wanted, window or not.
    """
    wanted = max(min(pods, scaler.most) if scaler.most else pods, _recorded(scaler) or 0)
    if scaler.ours and scaler.raised_from:
        return None if scaler.least == wanted else Step(scaler=scaler, least=wanted, raised_from=scaler.raised_from)
    if scaler.ours:  # the record was taken away
        return Step(scaler=scaler, least=wanted, raised_from=NOTHING)
    if _least(scaler) >= wanted:
        return None
    before = NOTHING if scaler.least is None else str(scaler.least)
    return Step(scaler=scaler, least=wanted, raised_from=scaler.raised_from or before)


def restored(scaler: ScalerView) -> Step | None:
    """Return what puts back what was before; None where there is nothing to put back. What others have set since then stays.

    A number that nobody owned and that is not assumed where it is left out would be lost with us: it stays applied, with its record.
    """
    if not scaler.raised_from:
        return None
    before = _recorded(scaler)
    if scaler.ours and before is not None and before != scaler.knob.assumed:
        return None if scaler.least == before else Step(scaler=scaler, least=before, raised_from=scaler.raised_from)
    return Step(scaler=scaler, least=None, raised_from="")


def strays(scalers: Iterable[ScalerView], wanted: Sequence[ScalerView]) -> list[ScalerView]:
    """Return the autoscalers that are raised and should not be; one that a controller made with the labels of ours is not."""
    return [s for s in scalers if s.raised_from and s not in wanted and (s.ours or not s.made)]


def told(scaler: ScalerView, step: Step, scaling: Scaling, window: Window) -> str:
    """Say what a step does, or would do."""
    hours = (window.until - window.ready_by).total_seconds() / 3600
    before = int(step.raised_from) if step.raised_from.isdigit() else scaler.knob.assumed
    more = max(0, (step.least or 0) - before)
    cost = f", {hours * more * scaling.gpus:.1f} GPU-hours" if scaling.gpus else ""
    return (
        f"{scaler.knob.word} of {scaler.knob.kind} {scaler.name} from {step.raised_from} to {step.least} until "
        f"{window.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC ({format_duration(window.until - window.ready_by)}{cost})"
    )


def _recorded(scaler: ScalerView) -> int | None:
    return int(scaler.raised_from) if scaler.raised_from.isdigit() else None


def _least(scaler: ScalerView) -> int:
    return scaler.knob.assumed if scaler.least is None else scaler.least
