"""How far models may fill the disk, and where the kubelet's own thresholds are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.models.capacity import OWN_WATERMARK, SAFE_WATERMARK, SHARED_WATERMARK, NoRoom, Space, watermark_of

SPACE = Space(capacity_bytes=1000, free_bytes=400)


@pytest.mark.parametrize(
    ("watermark", "reserved", "room"), [(1.0, 0, 400), (0.8, 0, 200), (0.8, 150, 50), (0.5, 0, 0), (0.8, 500, 0)]
)
def test_room_is_what_is_free_below_the_watermark_and_not_spoken_for(
    watermark: float, reserved: int, room: int
) -> None:
    assert SPACE.room_bytes(watermark, reserved) == room
    SPACE.check(room, watermark, reserved)
    with pytest.raises(NoRoom) as refused:
        SPACE.check(room + 7, watermark, reserved)
    assert (refused.value.needed_bytes, refused.value.short_bytes) == (room + 7, 7)


def test_a_refusal_tells_all_numbers() -> None:
    with pytest.raises(NoRoom) as refused:
        SPACE.check(300, 0.8, 150)
    assert str(refused.value) == (
        "needs 300 B but only 50 B may be used: the store's file system has 400 B free of 1.00 kB and is filled to 80% at "
        "most, 150 B are spoken for by other downloads"
    )


def test_a_store_beside_the_kubelet_stays_below_its_thresholds(tmp_path: Path) -> None:
    host, root = tmp_path / "host", tmp_path / "root"
    root.mkdir()
    assert watermark_of(None, root, host) == SHARED_WATERMARK < SAFE_WATERMARK  # nothing can be seen of the host
    (host / "var/lib/containerd").mkdir(parents=True)
    assert watermark_of(None, root / "not" / "yet", host) == SHARED_WATERMARK
    assert watermark_of(0.9, root, host) == 0.9


def test_a_store_with_a_file_system_of_its_own_may_fill_it(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.exists() or os.stat(shm).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("this machine has no second file system")
    (tmp_path / "var/lib/kubelet").mkdir(parents=True)
    assert watermark_of(None, shm, tmp_path) == OWN_WATERMARK
