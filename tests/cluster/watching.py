"""Sees every moment in which a node's label does not stand."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from tests.bed import Bed


class LabelWatch:
    """Follows one node by watch; `lost` tells each moment at which `label` had another value: version, time, writers, node.

    `with LabelWatch(bed, node, label, value) as watch:`; at the end the watch has seen all that was written before.
    """

    def __init__(self, bed: Bed, node: str, label: str, value: str) -> None:
        self._bed, self._node, self._label, self._value = bed, node, label, value
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seen, self._stop_at = threading.Event(), ""
        self.versions: list[str] = []
        self.lost: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._seen.wait(30):
            raise AssertionError(f"no watch of {self._node}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread.is_alive():
            mark = {"metadata": {"annotations": {"test/watch-ends": self._label.partition("/")[2]}}}
            self._stop_at = self._bed.api.patch(f"/api/v1/nodes/{self._node}", mark)["metadata"]["resourceVersion"]
            self._thread.join(30)
            self._bed.api.patch(f"/api/v1/nodes/{self._node}", {"metadata": {"annotations": {"test/watch-ends": None}}})
        assert self._stop_at in self.versions, "the watch broke off"

    def _run(self) -> None:
        for event in self._bed.api.watch(f"/api/v1/nodes?fieldSelector=metadata.name={self._node}", 280):
            metadata = event.object["metadata"]
            self.versions.append(metadata["resourceVersion"])
            if metadata["labels"].get(self._label) != self._value:
                writers = [f"{w['manager']} {w.get('time', '')}" for w in metadata.get("managedFields", [])]
                conditions = [f"{c['type']}={c['status']}" for c in event.object["status"].get("conditions", [])]
                self.lost.append(f"{metadata['resourceVersion']} {time.time():.1f} {writers[-4:]} {conditions}")
            self._seen.set()
            if "test/watch-ends" in metadata.get("annotations", {}):
                return
