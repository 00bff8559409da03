"""A real Kubernetes of N nodes on one Linux machine, without virtual machines, Docker or a container that holds a node.

    with Bed(Path(".cache/bed-mine"), nodes=2) as bed:       # up, at the end down; 4 s
        bed.kubectl("get", "nodes")                           # its output; BedError carries stderr
        bed.apply({...}); bed.get("deployment", "d", "ns")    # JSON objects or YAML text
        bed.api.get("/api/v1/nodes/node-1")                   # the same, in milliseconds: get post put patch delete
        bed.api.until("/api/v1/pods", condition, seconds=30)  # watches; the first Event for which it holds, with its time
        bed.s3.put("bucket", "key", b"…"); bed.s3.access_log()
        bed.registry_address                                  # push here; nodes pull registry.bed/NAME:TAG
        bed.exec("node-1", ["ctr", "-n", "k8s.io", "images", "ls"])
        bed.stop_node("node-1"); bed.start_node("node-1"); bed.wait_ready("node-1")
        bed.kill_api_server(); bed.start_api_server()         # also _s3, _registry
        bed.shape(400)                                        # Mbit/s to each node
        bed.give_gpus("node-1", 8)
        bed.node_pids("node-1", "prewarm")                    # this machine's pids, to signal

A node is a mount, PID, UTS, IPC and network namespace. So /run, /var/lib/kubelet, /var/lib/prewarm, the containerd
socket and hostPID are that node's own, the DaemonSet's manifest runs unchanged, and ending the namespaces' first process
ends containerd, every shim, every pod and every mount of the node at once: a power cut.

The machine has a leg in the bed's network: API server, registry, S3, nodes and pods have the same addresses from the
machine, from nodes and from pods. Several beds run side by side, each with addresses of its own.

`S3Server(directory)` is the S3 server alone, for tests that need no cluster. `needs.why_not("cluster")` says why a
bed cannot run on this machine. See README.md here for commands and traps.
"""

from tests.bed.api import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Api, ApiError, Event, Object
from tests.bed.bed import Bed
from tests.bed.process import BedError
from tests.bed.s3 import Access, S3Client, S3Server

__all__ = [
    "APPLY_PATCH",
    "JSON_PATCH",
    "MERGE_PATCH",
    "STRATEGIC_PATCH",
    "Access",
    "Api",
    "ApiError",
    "Bed",
    "BedError",
    "Event",
    "Object",
    "S3Client",
    "S3Server",
]
