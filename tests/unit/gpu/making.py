"""Short ways to make what the GPU room judges."""

from __future__ import annotations

from agent.gpu.observation import Answer, Gpu, PciGpus, Sample
from agent.gpu.questions import SLOW

BUS = PciGpus(present=("0000:10:00.0", "0000:11:00.0"), bound=("0000:10:00.0", "0000:11:00.0"))


def gpu(index: int = 0, recovery: int | None = 0, *, code: int = 0, **answers: tuple[int, ...]) -> Gpu:
    """A GPU that answers; `recovery` None: the driver has no such field; `code`: it cannot be asked."""
    asked = {"recovery": Answer(3) if recovery is None else Answer(0, (recovery,))}
    asked |= {name: Answer(0, values) for name, values in answers.items()}
    if code:
        return Gpu(index=index, call="nvmlDeviceGetHandleByIndex", code=code)
    return Gpu(index=index, uuid=f"GPU-{index}", pci=f"0000:{0x10 + index:02x}:00.0", answers=asked)


def sample(*gpus: Gpu, depth: int = SLOW, driver: str = "580") -> Sample:
    """A sample of these GPUs, else of two that answer."""
    shown = gpus or (gpu(0), gpu(1))
    return Sample(depth=depth, driver=driver, count=len(shown), gpus=shown)
