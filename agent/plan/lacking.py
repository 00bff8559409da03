"""What is still to come on this node, and how long it takes. Pure."""

from __future__ import annotations

from agent.core.assignment import ImageWant, ModelWant
from agent.core.inventory import Inventory, ModelState
from agent.core.refs import Digest

_ASSUMED_IMAGE_BYTES = 2_000_000_000  # an image's size is unknown before its manifest is here: a mid-size serving image


def model_digest(want: ModelWant, inventory: Inventory) -> Digest | None:
    """Return the version a want means here: the planner's, else the one the agent resolved, else None."""
    return want.digest or inventory.resolved.get(str(want.uri))


def image_is_warm(want: ImageWant, inventory: Inventory) -> bool:
    """True if the image is unpacked here and is the one the planner resolved."""
    state = inventory.images.get(want.ref)
    return state is not None and state.level.warm and want.digest in ("", state.digest)


def model_is_warm(want: ModelWant, inventory: Inventory) -> bool:
    """True if the wanted version is committed here."""
    digest = model_digest(want, inventory)
    state = inventory.models.get(digest) if digest else None
    return state is not None and state.level.committed


def model_state(want: ModelWant, inventory: Inventory) -> ModelState | None:
    """Return what is known of the wanted version here."""
    digest = model_digest(want, inventory)
    return inventory.models.get(digest) if digest else None


def model_bytes(want: ModelWant, inventory: Inventory) -> int:
    """Return the bytes of a model that are still to come."""
    state = model_state(want, inventory)
    total = (state.total_bytes if state else 0) or want.size_bytes
    return max(0, total - (state.done_bytes if state else 0))


def image_bytes(want: ImageWant, inventory: Inventory) -> int:
    """Return the bytes of an image that are still to come, as far as they are known."""
    state = inventory.images.get(want.ref)
    return max(0, state.total_bytes - state.done_bytes) if state and state.total_bytes else _ASSUMED_IMAGE_BYTES


def usual_rate(inventory: Inventory, assumed_bytes_per_second: float) -> float:
    """Return the node's p10 rate; before there is one, what a download reaches now, else what may be assumed."""
    running = max((s.rate_bytes_per_second for s in inventory.models.values()), default=0.0)
    return inventory.pace_bytes_per_second or running or assumed_bytes_per_second


def rate_now(inventory: Inventory, usual: float) -> float:
    """Return what running downloads reach now where that is less than usual; a stall tells little of what comes after it."""
    present = inventory.present_bytes_per_second
    return max(present, usual / 10) if 0 < present < usual else usual
