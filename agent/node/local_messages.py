"""Values as messages of `proto/prewarm/v1`. Pure.

What pods get of the status (`whole=False`) names no model, image or reason: those belong to other tenants too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from agent.core.assignment import Assignment
from agent.core.inventory import GpuReason, GpuReport, Inventory
from agent.core.names import READY, endpoint_label
from agent.node.readiness import Readiness
from agent.node.status import eta_of
from agent.node.waiting import Outlook
from agent.pb.prewarm.v1 import local_pb2
from agent.plan.decision import EndpointPlan, NodePlan
from agent.plan.lacking import model_digest


def status_message(
    node: str,
    assignment: Assignment | None,
    inventory: Inventory,
    plan: NodePlan,
    readiness: Readiness,
    now: datetime,
    *,
    whole: bool,
) -> local_pb2.StatusResponse:
    """Return the status of the node; only what any pod may know unless `whole`."""
    gpu, cache = inventory.gpu, inventory.cache
    return local_pb2.StatusResponse(
        node=node,
        proved=inventory.proved,
        generation=assignment.generation if assignment else 0,
        endpoints=[_endpoint(e, readiness, whole=whole) for e in plan.endpoints],
        gpu=_gpu(gpu) if whole else local_pb2.Gpu(verdict=str(gpu.verdict), count=gpu.count),
        cache=local_pb2.Cache(
            used_bytes=cache.used_bytes, free_bytes=cache.free_bytes, capacity_bytes=cache.capacity_bytes
        ),
        memory=_memory(inventory),
        items=list(_items(assignment, inventory, now)) if whole and assignment else [],
        labels=readiness.labels,
        reasons=readiness.reasons if whole else {},
    )


def progress_message(now: Outlook, paths: Mapping[str, Path], *, ready: bool) -> local_pb2.WaitProgress:
    """Return one message of a wait; paths are told from the moment the version is known."""
    return local_pb2.WaitProgress(
        state=local_pb2.WaitProgress.READY if ready else local_pb2.WaitProgress.WAITING,
        message=now.message,
        done_bytes=sum(m.done_bytes for m in now.models),
        total_bytes=sum(m.total_bytes for m in now.models),
        models=[
            local_pb2.WaitModel(
                name=m.name, digest=m.digest or "", path=str(paths.get(m.name, "")), committed=m.committed
            )
            for m in now.models
        ],
    )


def _gpu(report: GpuReport) -> local_pb2.Gpu:
    return local_pb2.Gpu(
        verdict=str(report.verdict),
        reason=report.reason,
        count=report.count,
        gpus=[
            local_pb2.GpuDevice(index=g.index, uuid=g.uuid, verdict=str(g.verdict), reasons=_gpu_reasons(g.reasons))
            for g in report.gpus
        ],
        reasons=_gpu_reasons(report.reasons),
    )


def _gpu_reasons(reasons: Iterable[GpuReason]) -> list[local_pb2.GpuReason]:
    return [local_pb2.GpuReason(code=r.code, verdict=str(r.verdict or ""), text=r.text) for r in reasons]


def _endpoint(told: EndpointPlan, readiness: Readiness, *, whole: bool) -> local_pb2.EndpointStatus:
    key = told.want.key
    return local_pb2.EndpointStatus(
        namespace=key.namespace,
        name=key.name,
        stage=str(told.stage),
        ready=readiness.labels.get(endpoint_label(key.namespace, key.name)) == READY,
        reason=told.reason if whole else "",
        start_at=_unix(told.start_at),
        due=_unix(told.due),
        missing_bytes=told.missing_bytes,
    )


def _memory(inventory: Inventory) -> local_pb2.Memory | None:
    memory = inventory.memory
    if memory.budget_bytes is None:
        return None
    return local_pb2.Memory(held_bytes=memory.held_bytes, budget_bytes=memory.budget_bytes, basis=memory.basis)


def _items(assignment: Assignment, inventory: Inventory, now: datetime) -> Iterator[local_pb2.Item]:
    for ref in {i.ref for e in assignment.endpoints for i in e.images}:
        image = inventory.images.get(ref)
        if image is None:
            yield local_pb2.Item(ref=str(ref), level="absent", reason="not looked at yet")
        else:
            yield local_pb2.Item(
                ref=str(ref),
                level=str(image.level),
                done_bytes=image.done_bytes,
                total_bytes=image.total_bytes,
                reason=image.reason,
                error=image.error,
                digest=image.digest,
            )
    for want in {str(m.uri): m for e in assignment.endpoints for m in e.models}.values():
        digest = model_digest(want, inventory)
        model = inventory.models.get(digest) if digest else None
        if model is None:
            yield local_pb2.Item(
                ref=str(want.uri),
                level="absent",
                digest=digest or "",
                total_bytes=want.size_bytes,
                error=inventory.unresolved.get(str(want.uri), ""),
            )
        else:
            yield local_pb2.Item(
                ref=str(want.uri),
                level=str(model.level),
                done_bytes=model.done_bytes,
                total_bytes=model.total_bytes or want.size_bytes,
                rate=model.rate_bytes_per_second if model.busy else 0.0,
                eta=_unix(eta_of(model, now)),
                reason=model.reason,
                error=model.error,
                digest=model.digest,
                resident_bytes=model.resident_bytes,
            )


def _unix(time: datetime | None) -> int:
    return int(time.timestamp()) if time else 0
