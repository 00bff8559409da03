"""The bed's network: a bridge in the control plane's namespace, one leg to each node, one to the machine itself.

Plain routes, no NAT. Shaping limits what goes to the nodes (images, weights), never what the machine itself asks.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.bed.process import BedError, run
from tests.bed.settings import SERVICE_IP, SLOTS, Addresses, Settings


def claim_slot(name: str) -> int:
    """Make the machine's leg into a new bed, which claims the first free slot.

    The link's name is the lock: the kernel makes only one of a name, and it goes with the bed's namespace.

    Raises:
        BedError: every slot is taken; the text says by whom.
    """
    run(["ip", "netns", "add", name])
    for slot in range(SLOTS):
        link = Addresses(slot=slot).link
        try:
            run(["ip", "link", "add", "name", link, "type", "veth", "peer", "name", "to-host", "netns", name])
        except BedError as taken:
            if "File exists" not in str(taken):
                raise
            continue
        run(["ip", "link", "set", "dev", link, "alias", f"bed {name}"])
        return slot
    run(["ip", "netns", "del", name])
    raise BedError(f"all {SLOTS} beds of this machine are in use: {', '.join(links().values())}")


def make(name: str, settings: Settings) -> None:
    """Bridge, legs, addresses and routes, after `claim_slot`."""
    addresses = settings.addresses
    lines = [
        "link set lo up",
        "link add br0 type bridge",
        f"addr add {addresses.control}/24 dev br0",
        # The API server listens on 443 of every address here; giving this namespace the service address makes
        # https://10.96.0.1:443 reachable from every pod by plain routing: no kube-proxy, no NAT, no override.
        f"addr add {SERVICE_IP}/32 dev br0",
        "link set br0 up",
        "link set to-host master br0 up",
    ]
    for node in settings.names:
        _make_leg(name, node, addresses)
        lines.append(f"link set to-{node} master br0 up")
        lines.append(f"route add {addresses.node_pods(node)} via {addresses.node(node)}")
    run(["ip", "-n", name, "-batch", "-"], data="\n".join(lines) + "\n")
    _forward(name)
    _join_machine(addresses)


def _make_leg(name: str, node: str, addresses: Addresses) -> None:
    namespace = f"{name}-{node}"
    run(["ip", "netns", "add", namespace])
    run(["ip", "-n", name, "link", "add", f"to-{node}", "type", "veth", "peer", "name", "eth0", "netns", namespace])
    lines = [
        "link set lo up",
        f"addr add {addresses.node(node)}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {addresses.control}",
    ]
    run(["ip", "-n", namespace, "-batch", "-"], data="\n".join(lines) + "\n")
    _forward(namespace)


def _forward(namespace: str) -> None:
    run(["nsenter", f"--net=/run/netns/{namespace}", "sysctl", "-qw", "net.ipv4.ip_forward=1"])


def _join_machine(addresses: Addresses) -> None:
    run(["ip", "addr", "add", f"{addresses.host}/24", "dev", addresses.link])
    run(["ip", "link", "set", addresses.link, "up"])
    run(["ip", "route", "add", addresses.pods, "via", addresses.control])


def remove(name: str, settings: Settings) -> None:
    """Take all of it away; what is gone already is no error."""
    for link, holder in links().items():
        if holder == name:
            subprocess.run(["ip", "link", "del", link], stderr=subprocess.DEVNULL, check=False)
    for namespace in (name, *(f"{name}-{node}" for node in settings.names)):
        if Path(f"/run/netns/{namespace}").exists():
            run(["ip", "netns", "del", namespace])


def links() -> dict[str, str]:
    """The machine's legs into beds, each with the name of its bed."""
    shown = json.loads(run(["ip", "-json", "link", "show", "type", "veth"]) or "[]")
    return {link["ifname"]: link["ifalias"].removeprefix("bed ") for link in shown if _is_leg(link)}


def _is_leg(link: dict[str, str]) -> bool:
    return link.get("ifname", "").startswith("pwbed") and "ifalias" in link


def shape(name: str, settings: Settings, rate_mbit: int | None) -> None:
    """Limit what the control plane's namespace sends to each node (Mbit/s a node); None lifts the limit."""
    for node in settings.names:
        device = ["dev", f"to-{node}", "root"]
        if rate_mbit is None:
            command = ["tc", "-n", name, "qdisc", "del", *device]
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)  # there may be none
        else:
            limit = ["tbf", "rate", f"{rate_mbit}mbit", "burst", "1mb", "latency", "50ms"]
            run(["tc", "-n", name, "qdisc", "replace", *device, *limit])
