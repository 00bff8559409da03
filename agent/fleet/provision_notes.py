"""What is told of nodes that are asked for, as Events on the workload. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from agent.fleet.provision import Answer, Ask, Provision, waits
from agent.kube.events import Announcement, EventType
from agent.kube.objects import ObjectRef
from agent.kube.placeholders import PlaceholderView

NOT_INSTALLED = "an operator has to apply deploy/provision"


def off_note(provision: Provision) -> Announcement:
    """Say that the operator allows none."""
    text = "on brings up no nodes here: an operator can allow some with the setting provision_nodes (docs/workloads.md)"
    return _tell(provision, "NotProvisioned", text)


def refused_note(ask: Ask, why: str) -> Announcement:
    """Say why no placeholder can be made."""
    return _tell(ask.provision, "CannotProvision", f"no node is asked for: {why}")


def answer_note(ask: Ask, found: Answer) -> Announcement:
    """Say what placeholders have found out."""
    pods, until = _pods(ask.count), f"{ask.window.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if found is Answer.ROOM:
        text = f"there is room for {pods}, so no node is asked for; it is looked at again until {until}"
        return _tell(ask.provision, "RoomFound", text, EventType.NORMAL)
    text = f"{pods} of low priority asked for nodes and hold them until {until}, or until the workload has pods"
    return _tell(ask.provision, "Provisioning", text, EventType.NORMAL)


def standing_notes(
    asked: Iterable[Ask], standing: Iterable[PlaceholderView], now: datetime, most: int
) -> Iterator[Announcement]:
    """Say what is amiss: a due window without its nodes, and less asked for than is wanted."""
    waiting = {p.key for p in standing if p.alive and waits(p, now)}
    for ask in asked:
        if ask.provision.key in waiting and now >= ask.window.ready_by:
            text = (
                "the window is due and not every node has come: see whether an autoscaler may bring one that fits the pod template, "
                "and how long that takes"
            )
            yield _tell(ask.provision, "NoNodeCame", text)
        if ask.count < ask.wanted:
            text = f"{ask.count} of {_pods(ask.wanted)} can be asked for: provision_nodes allows {most} in all, those of greater priority first"
            yield _tell(ask.provision, "ProvisionCapped", text)


def _pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"


def _tell(provision: Provision, reason: str, text: str, kind: EventType = EventType.WARNING) -> Announcement:
    workload = provision.workload
    about = ObjectRef(
        api_version=workload.api_version,
        kind=workload.kind,
        namespace=workload.namespace,
        name=workload.name,
        uid=workload.uid,
    )
    return Announcement(about=about, reason=reason, message=f"provision: {text}", type=kind)
