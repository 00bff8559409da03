from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RemoveRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("node", "proved", "generation", "endpoints", "gpu", "cache", "items", "labels", "reasons", "memory")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ReasonsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    PROVED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    node: str
    proved: bool
    generation: int
    endpoints: _containers.RepeatedCompositeFieldContainer[EndpointStatus]
    gpu: Gpu
    cache: Cache
    items: _containers.RepeatedCompositeFieldContainer[Item]
    labels: _containers.ScalarMap[str, str]
    reasons: _containers.ScalarMap[str, str]
    memory: Memory
    def __init__(self, node: _Optional[str] = ..., proved: _Optional[bool] = ..., generation: _Optional[int] = ..., endpoints: _Optional[_Iterable[_Union[EndpointStatus, _Mapping]]] = ..., gpu: _Optional[_Union[Gpu, _Mapping]] = ..., cache: _Optional[_Union[Cache, _Mapping]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., labels: _Optional[_Mapping[str, str]] = ..., reasons: _Optional[_Mapping[str, str]] = ..., memory: _Optional[_Union[Memory, _Mapping]] = ...) -> None: ...

class EndpointStatus(_message.Message):
    __slots__ = ("namespace", "name", "stage", "ready", "reason", "start_at", "due", "missing_bytes")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    DUE_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    stage: str
    ready: bool
    reason: str
    start_at: int
    due: int
    missing_bytes: int
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., stage: _Optional[str] = ..., ready: _Optional[bool] = ..., reason: _Optional[str] = ..., start_at: _Optional[int] = ..., due: _Optional[int] = ..., missing_bytes: _Optional[int] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("ref", "level", "done_bytes", "total_bytes", "rate", "eta", "reason", "error", "digest", "resident_bytes")
    REF_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ref: str
    level: str
    done_bytes: int
    total_bytes: int
    rate: float
    eta: int
    reason: str
    error: str
    digest: str
    resident_bytes: int
    def __init__(self, ref: _Optional[str] = ..., level: _Optional[str] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., rate: _Optional[float] = ..., eta: _Optional[int] = ..., reason: _Optional[str] = ..., error: _Optional[str] = ..., digest: _Optional[str] = ..., resident_bytes: _Optional[int] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ("held_bytes", "budget_bytes", "basis")
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    held_bytes: int
    budget_bytes: int
    basis: str
    def __init__(self, held_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., basis: _Optional[str] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("verdict", "reason", "count", "gpus", "reasons")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    verdict: str
    reason: str
    count: int
    gpus: _containers.RepeatedCompositeFieldContainer[GpuDevice]
    reasons: _containers.RepeatedCompositeFieldContainer[GpuReason]
    def __init__(self, verdict: _Optional[str] = ..., reason: _Optional[str] = ..., count: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[GpuDevice, _Mapping]]] = ..., reasons: _Optional[_Iterable[_Union[GpuReason, _Mapping]]] = ...) -> None: ...

class GpuDevice(_message.Message):
    __slots__ = ("index", "uuid", "verdict", "reasons")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    index: int
    uuid: str
    verdict: str
    reasons: _containers.RepeatedCompositeFieldContainer[GpuReason]
    def __init__(self, index: _Optional[int] = ..., uuid: _Optional[str] = ..., verdict: _Optional[str] = ..., reasons: _Optional[_Iterable[_Union[GpuReason, _Mapping]]] = ...) -> None: ...

class GpuReason(_message.Message):
    __slots__ = ("code", "verdict", "text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    code: str
    verdict: str
    text: str
    def __init__(self, code: _Optional[str] = ..., verdict: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Cache(_message.Message):
    __slots__ = ("used_bytes", "free_bytes", "capacity_bytes")
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    used_bytes: int
    free_bytes: int
    capacity_bytes: int
    def __init__(self, used_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("namespace", "endpoint", "pod_name", "pod_uid", "models", "timeout")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    endpoint: str
    pod_name: str
    pod_uid: str
    models: _containers.RepeatedCompositeFieldContainer[ModelRef]
    timeout: float
    def __init__(self, namespace: _Optional[str] = ..., endpoint: _Optional[str] = ..., pod_name: _Optional[str] = ..., pod_uid: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelRef, _Mapping]]] = ..., timeout: _Optional[float] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "uri")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    name: str
    uri: str
    def __init__(self, name: _Optional[str] = ..., uri: _Optional[str] = ...) -> None: ...

class WaitProgress(_message.Message):
    __slots__ = ("state", "message", "done_bytes", "total_bytes", "models")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WAITING: _ClassVar[WaitProgress.State]
        READY: _ClassVar[WaitProgress.State]
    WAITING: WaitProgress.State
    READY: WaitProgress.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    state: WaitProgress.State
    message: str
    done_bytes: int
    total_bytes: int
    models: _containers.RepeatedCompositeFieldContainer[WaitModel]
    def __init__(self, state: _Optional[_Union[WaitProgress.State, str]] = ..., message: _Optional[str] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., models: _Optional[_Iterable[_Union[WaitModel, _Mapping]]] = ...) -> None: ...

class WaitModel(_message.Message):
    __slots__ = ("name", "digest", "path", "committed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    path: str
    committed: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ..., committed: _Optional[bool] = ...) -> None: ...
