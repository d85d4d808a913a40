"""Machines on loopback for the cluster's test: real sshd, real `ray up`, and nothing left behind.

Each host is an sshd of its own, on an address of its own in 127/8, with a home directory of its
own. All of it lives in one short folder in /tmp (the path of a Unix socket has at most 107 bytes).
Every process started on a host inherits that folder's name, which is how exactly these are found
and ended, by process id; `ray stop` and `ray down` would end every Ray that the user has here.

`ssh` is the real one, called through a two-line script that names a configuration file: Ray's
launcher knows port 22 only, and `~` in the key's path is the home in the password file, not HOME.
"""

import getpass
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SSHD_CONFIG = """Port {port}
ListenAddress {address}
HostKey {host_key}
PidFile none
AuthorizedKeysFile {key}.pub
AllowUsers {user}
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintLastLog no
SetEnv {settings}
"""


def missing_tools() -> str | None:
    """Why no loopback host can be made here, or None."""
    if not sys.platform.startswith("linux"):
        return "hosts on 127.0.0.0/8 need Linux"
    tools = {"sshd": SSHD, **{name: shutil.which(name) for name in ("ssh", "ssh-keygen", "rsync")}}
    absent = [name for name, path in tools.items() if path is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class LoopbackHosts:
    """Some sshds on loopback that this user reaches with one key; a context manager."""

    def __init__(self, count: int, settings: Mapping[str, str]) -> None:
        """`settings` are environment variables of every login on the hosts."""
        self.root = Path(tempfile.mkdtemp(prefix="reid-", dir="/tmp"))
        self.name = self.root.name
        self.user = getpass.getuser()
        self.key = self.root / "client_key"
        network = f"127.{random.randrange(1, 255)}.{random.randrange(255)}"
        self.addresses = [f"{network}.{2 + host}" for host in range(count)]
        self.homes = [self.root / f"host{host}" for host in range(count)]
        self.client = self.root / "client"
        self._port = free_port(self.addresses)
        self._settings = {**settings, "RAY_TMPDIR": str(self.root)}
        self._sshds: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._make_client()
            for address, home in zip(self.addresses, self.homes, strict=True):
                self._start_host(address, home)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def client_env(self) -> dict[str, str]:
        """The environment of somebody outside the cluster who holds its key and its token."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("RAY_") and name != "PYTHONDONTWRITEBYTECODE"
        }
        return {
            **inherited,
            "HOME": str(self.client),
            "PATH": f"{self.root / 'bin'}:{inherited.get('PATH', os.defpath)}",
            "RAY_TMPDIR": str(self.client),
            "TERM": "dumb",  # stages then print lines instead of moving bars
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def logs(self) -> str:
        """The ends of the autoscaler's and the sshds' logs, for an error message."""
        logs = [*self.root.glob("ray/session_latest/logs/monitor.*"), *self.root.glob("host*.log")]
        return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def close(self) -> None:
        """End every process of these hosts, and remove every file."""
        for sshd in self._sshds:
            sshd.send_signal(signal.SIGSTOP)  # no new login while the processes are listed
        end_processes(str(self.root), [sshd.pid for sshd in self._sshds])
        for sshd in self._sshds:
            sshd.wait(timeout=10)
        shutil.rmtree(self.root)
        launcher = [
            hashlib.sha256(name.encode()).hexdigest()[:10] for name in (self.user, self.name)
        ]
        sockets = Path(f"/tmp/ray_ssh_{launcher[0]}") / launcher[1]  # Ray's launcher makes it
        if sockets.exists():
            shutil.rmtree(sockets)

    def _make_client(self) -> None:
        self.client.mkdir()
        for name in ("client_key", "host_key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / name)]
            subprocess.run(keygen, check=True)
        config = self.root / "ssh_config"
        config.write_text(f"Port {self._port}\nIdentityFile {self.key}\nLogLevel ERROR\n")
        ssh = self.root / "bin" / "ssh"
        ssh.parent.mkdir()
        # Without a control socket no connection outlives its command.
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} -S none "$@"\n')
        ssh.chmod(0o755)

    def _start_host(self, address: str, home: Path) -> None:
        assert SSHD is not None, "missing_tools() tells first"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        home.mkdir()
        (home / ".bashrc").write_text(f"export PATH={self.root / 'bin'}:$PATH\n")
        settings = {"HOME": str(home), **self._settings}
        config = home.with_suffix(".sshd_config")
        config.write_text(
            SSHD_CONFIG.format(
                port=self._port,
                address=address,
                host_key=self.root / "host_key",
                key=self.key,
                user=self.user,
                settings=" ".join(f'"{name}={value}"' for name, value in settings.items()),
            )
        )
        log = home.with_suffix(".log")
        sshd = subprocess.Popen([SSHD, "-D", "-f", str(config), "-E", str(log)])
        self._sshds.append(sshd)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex((address, self._port)) == 0:
                    return
            if sshd.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"no sshd on {address}:{self._port}: {log.read_text()}")


class RayCluster:
    """A cluster file on loopback hosts, driven by the `ray` command as a user does."""

    def __init__(
        self, hosts: LoopbackHosts, config: Mapping[str, Any], *, port: int, dashboard_port: int
    ) -> None:
        """The ports are the head's, for the commands that ask it directly."""
        self.hosts = hosts
        self.address = f"{hosts.addresses[0]}:{port}"
        self.dashboard = f"http://{hosts.addresses[0]}:{dashboard_port}"
        self.file = hosts.root / "cluster.yaml"
        self.file.write_text(yaml.safe_dump({**config, "cluster_name": hosts.name}))

    def up(self, nodes: int, timeout_s: float) -> None:
        """`ray up`, then wait until this many nodes have joined."""
        deadline = time.monotonic() + timeout_s
        self.ray("up", "-y", "--no-config-cache", str(self.file), timeout_s=timeout_s)
        while self.active_nodes() < nodes:
            assert time.monotonic() < deadline, f"no {nodes} nodes:\n{self.hosts.logs()}"

    def active_nodes(self) -> int:
        """Nodes that `ray status` calls active."""
        status = self.ray("status", "--address", self.address, RAY_AUTH_MODE="token")
        return sum(map(int, re.findall(r"^ (\d+) \S+$", status.partition("Pending:")[0], re.M)))

    def nodes_that_worked(self) -> set[str]:
        """Ids of the nodes that ran tasks, of those that the cluster still remembers."""
        command = ["list", "tasks", "--address", self.dashboard, "--format", "json"]
        listed = self.ray(*command, "--limit", "1000", RAY_AUTH_MODE="token")
        tasks, _ = json.JSONDecoder().raw_decode(listed, listed.index("["))
        return {task["node_id"] for task in tasks if task["node_id"]}

    def submit(self, script: Path, args: Sequence[str], timeout_s: float) -> str:
        """`ray submit CLUSTER SCRIPT -- ARGS`; what it printed, the script's output at the end."""
        file = str(self.file)
        command = ["submit", "--no-config-cache", file, str(script), "--", *args]
        return self.ray(*command, timeout_s=timeout_s)

    def ray(self, *args: str, timeout_s: float = 60.0, **settings: str) -> str:
        """What `ray ARGS` printed; AssertionError with it where the exit status is not 0."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *args],
            env={**self.hosts.client_env, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            start_new_session=True,  # `ssh -tt` must not change this terminal
        )
        assert done.returncode == 0, f"ray {args} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout


def free_port(addresses: Iterable[str]) -> int:
    """A TCP port that nobody listens on at any of the addresses."""
    first, *others = addresses
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind((first, 0))
            port: int = probe.getsockname()[1]
        try:
            for address in others:
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return port
    raise RuntimeError(f"no port is free on all of {first}, {others}")


def end_processes(marker: str, roots: Iterable[int]) -> None:
    """SIGKILL `roots`, all processes that name `marker`, and the descendants of both.

    A process names the marker in its command line or in the environment it was started with; one
    that has rewritten both (Ray's workers do) is still the child of one that has not.
    """
    roots = set(roots)
    deadline = time.monotonic() + 30
    while targets := _family(marker, roots):
        if time.monotonic() > deadline:
            raise RuntimeError(f"still there after SIGKILL: {sorted(targets)}")
        for pid in targets:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        roots = set()
        time.sleep(0.1)


def _family(marker: str, roots: set[int]) -> set[int]:
    parents: dict[int, int] = {}
    family = set(roots)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or another user's
        if state == "Z":
            continue
        parents[int(entry.name)] = int(parent)
        if marker.encode() in text:
            family.add(int(entry.name))
    while children := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= children
    return family
