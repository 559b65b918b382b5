"""Ceph's S3 gateway on loopback: one monitor, one object store in memory, one gateway; real signatures and policies.

Debian has it: ``apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common``. It starts in seconds.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph-authtool")

_CONF = """[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{mon}/0]
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
ms_bind_ipv6 = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_objectstore = memstore
memstore_device_bytes = 1073741824
osd_crush_chooseleaf_type = 0
run_dir = {run}
admin_socket = {run}/$name.asok
log_file = {run}/$name.log
pid_file =
mon_data = {run}/mon
osd_data = {run}/osd
rgw_data = {run}/rgw
keyring = {run}/keyring
rgw_frontends = beast endpoint=127.0.0.1:{rgw}
rgw_enable_ops_log = false
rgw_enable_usage_log = false
"""


def missing() -> list[str]:
    """Give the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    url: str
    conf: Path

    def user(self, name: str) -> tuple[str, str]:
        """Make a user, and give its access key and secret."""
        out = self._admin("user", "create", f"--uid={name}", f"--display-name={name}")
        key = json.loads(out)["keys"][0]
        return key["access_key"], key["secret_key"]

    def caps(self, name: str, caps: str) -> None:
        """Let a user administer."""
        self._admin("caps", "add", f"--uid={name}", f"--caps={caps}")

    def client(self, service: str, keys: tuple[str, str]) -> Any:
        """Give a boto3 client with a user's keys."""
        return boto3.session.Session().client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=keys[0],
            aws_secret_access_key=keys[1],
        )

    def _admin(self, *words: str) -> str:
        ran = subprocess.run(
            ["radosgw-admin", "-c", str(self.conf), "-n", "client.admin", *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@cache
def gateway() -> Gateway:
    """Start it, once in a run."""
    folder = tempfile.TemporaryDirectory(prefix="bundlectl-ceph-")
    run = Path(folder.name)
    for name in ("mon", "osd", "rgw"):
        (run / name).mkdir()
    mon, rgw = _free_port(), _free_port()
    conf = run / "ceph.conf"
    fsid = str(uuid.uuid4())
    conf.write_text(_CONF.format(fsid=fsid, mon=mon, rgw=rgw, run=run))
    started: list[subprocess.Popen[bytes]] = []

    def stop() -> None:
        for process in reversed(started):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if process is not started[-1] else signal.SIGTERM)
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        folder.cleanup()

    atexit.register(stop)

    def do(*words: str) -> str:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, f"{words}: {ran.stderr}"
        return ran.stdout

    def start(*words: str) -> None:
        with (run / f"{words[0]}.out").open("wb") as out:
            started.append(
                subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ})
            )

    ring, osd_ring, with_conf = str(run / "keyring"), str(run / "osd" / "keyring"), ("-c", str(conf))
    do("ceph-authtool", "--create-keyring", ring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    admin = [one for cap in ("mon", "osd", "mgr") for one in ("--cap", cap, "allow *")]
    do("ceph-authtool", ring, "--gen-key", "-n", "client.admin", *admin)
    monmap = str(run / "monmap")
    do("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon}/0]", "--fsid", fsid, monmap)
    do("ceph-mon", *with_conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", ring)
    start("ceph-mon", *with_conf, "-i", "a", "-f")
    osd = str(uuid.uuid4())
    do("ceph", *with_conf, "--connect-timeout", "30", "osd", "new", osd)
    secret = do("ceph-authtool", "--gen-print-key").strip()
    caps = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
    do("ceph-authtool", osd_ring, "--create-keyring", "-n", "osd.0", "--add-key", secret, *caps)
    do("ceph", *with_conf, "auth", "add", "osd.0", "-i", osd_ring)
    do("ceph-osd", "-k", osd_ring, *with_conf, "-i", "0", "--mkfs", "--osd-uuid", osd)
    start("ceph-osd", "-k", osd_ring, *with_conf, "-i", "0", "-f")
    start("radosgw", "-k", ring, *with_conf, "-n", "client.admin", "-f")
    url = f"http://127.0.0.1:{rgw}"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return Gateway(url, conf)
        except urllib.error.HTTPError:
            return Gateway(url, conf)
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"radosgw did not start: {(run / 'radosgw.out').read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
