"""Machines that can be cut off from the net: nodes of Ray in network namespaces of their own, on one bridge.

What is cut off runs on and answers nobody; no connection of it is closed. All is inside a namespace that `unshare` made
for this process (`in_own_net`), so that the machine's own network stays as it is; root in it is needed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.fake_cluster import FakeCluster

BRIDGE, HEAD_IP = "br0", "10.99.0.1"
OWN = "CHAOS_IN_OWN_NET"
"""Set where `in_own_net` has been."""
LINK = f"ip link add {BRIDGE} type bridge"


def is_possible() -> bool:
    """Whether this user may make network namespaces, and links in them."""
    try:
        return subprocess.run(["unshare", "-n", *LINK.split()], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def in_own_net(module: str) -> None:
    """Run this program again in a network of its own, unless it is: one bridge, and nothing beyond it."""
    if OWN not in os.environ:
        os.execvpe("unshare", ["unshare", "-n", sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, OWN: "1"})
    for words in ("ip link set lo up", LINK, f"ip addr add {HEAD_IP}/24 dev {BRIDGE}", f"ip link set {BRIDGE} up",
                  f"ip route add default dev {BRIDGE}"):
        _do(words)


class PartedCluster(FakeCluster):
    """A head on the bridge, and so many machines with a logical GPU, each with a link of its own."""

    def __init__(self, machines: int, *, head: Mapping[str, Any], labels: str,
                 environment: Mapping[str, str] | None = None) -> None:
        """Start them. `environment`: further variables of the head; `labels`: of the machines, `name=value`."""
        super().__init__({}, head=head, idle_s=600, environment=environment)
        self._nets: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(1, machines + 1):
                self._join(number, labels)
        except BaseException:
            self.close()
            raise

    def cut(self, process: psutil.Process) -> str:
        """Cut off the machine of this process; the link that was cut."""
        net = _net(process.pid)
        link = next(f"m{number}" for number, holder in enumerate(self._nets, 1) if _net(holder.pid) == net)
        _do(f"ip link set {link} down")
        return link

    @staticmethod
    def mend(link: str) -> None:
        """End the cut."""
        _do(f"ip link set {link} up")

    def close(self) -> None:
        """End it, and nothing else."""
        super().close()
        for holder in self._nets:
            holder.kill()
            holder.wait()

    def _join(self, number: int, labels: str) -> None:
        holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        holder.stdout.readline()  # the namespace is there
        self._nets.append(holder)
        ip = f"10.99.0.{10 + number}"
        _do(f"ip link add m{number} type veth peer name eth0 netns {holder.pid}")
        _do(f"ip link set m{number} master {BRIDGE} up")
        within = f"nsenter --net=/proc/{holder.pid}/ns/net"
        for words in ("ip link set lo up", f"ip addr add {ip}/24 dev eth0", "ip link set eth0 up",
                      f"ip route add default via {HEAD_IP}"):
            _do(f"{within} {words}")
        _do(f"{within} {Path(sys.executable).parent / 'ray'} start --address={self.address} --node-ip-address={ip} "
            f"--num-cpus=1 --num-gpus=1 --labels={labels} --object-store-memory=100000000 --disable-usage-stats")


def _net(pid: int) -> str:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    return ""


def _do(words: str) -> None:
    done = subprocess.run(words.split(), check=False, capture_output=True, text=True, timeout=180)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr or done.stdout}")
