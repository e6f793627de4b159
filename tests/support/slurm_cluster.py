"""A Slurm cluster of virtual nodes on this machine, for tests that need `sbatch`, `squeue`, `scancel` to be real.

    with SlurmCluster() as cluster:
        subprocess.run(["sbatch", …], env=cluster.environment)

Each cluster has its own folder, `munged` and ports, and its clients find it through `SLURM_CONF` alone. So it does not
interfere with the clusters of other test processes or with a real one on this machine. It has no accounting, no cgroups
and no memory limits; the nodes share the machine. It needs root and Debian's packages `slurm-wlm` and `munge`, which
scripts/test.sh installs if BERT_PLD_REQUIRE_SLURM=1.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import LAUNCHER_VARIABLES, free_port

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
ANSWER_S = 120.0
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_LOG_LINES = 15


def require_slurm() -> None:
    """Skip the tests where Slurm or root is missing; fail them if BERT_PLD_REQUIRE_SLURM=1, as in CI."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=_path())]
    if missing:
        reason = f"{missing[0]} is missing; install Debian's packages slurm-wlm and munge"
    elif os.geteuid() != 0:
        reason = "a Slurm cluster of virtual nodes needs root"
    else:
        return
    if os.environ.get("BERT_PLD_REQUIRE_SLURM") == "1":
        pytest.fail(f"BERT_PLD_REQUIRE_SLURM=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SBIN}"


class SlurmCluster:
    """Context manager that runs virtual nodes node1, node2, … in one partition, `main`; on entry all are idle.

    `settings` are additional lines of slurm.conf. Slurm sends SIGKILL `kill_wait_s` seconds after SIGTERM.
    """

    def __init__(self, nodes: int = 2, cpus: int = 1, settings: str = "", kill_wait_s: int = 2) -> None:
        self.nodes, self.cpus, self.settings, self.kill_wait_s = nodes, cpus, settings, kill_wait_s
        self.folder = Path()
        self.environment: dict[str, str] = {}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SlurmCluster:
        # Not in a test's own folder, whose path is long: the path of a socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm_"))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") and k not in LAUNCHER_VARIABLES}
        self.environment = {**inherited, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
        try:
            self._wait("no job is left", lambda: not self.output("squeue", "--noheader").strip())
        finally:
            self._stop()

    def output(self, *command: str) -> str:
        """Return the standard output of a client command; raise CalledProcessError if it fails."""
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def _start(self) -> None:
        folder, ports = self.folder, _free_ports(1 + self.nodes)
        for name in ("state", *(f"spool_node{node + 1}" for node in range(self.nodes))):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(self._configuration(ports))
        key, munge_socket = folder / "munge.key", folder / "munge.socket"
        subprocess.run(["mungekey", "--create", f"--keyfile={key}"], env=self.environment, check=True)
        munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge_socket}"]
        munged += [f"--pid-file={folder / 'munged.pid'}", f"--seed-file={folder / 'munge.seed'}"]
        self._daemon("munged", *munged)
        check = ["munge", "--no-input", f"--socket={munge_socket}"]
        self._wait("munged answers", lambda: self.output(*check) is not None)
        self._daemon("slurmctld", "slurmctld", "-D", "-c")
        self._wait("slurmctld answers", lambda: "UP" in self.output("scontrol", "ping"))
        for node in range(1, self.nodes + 1):
            self._daemon(f"slurmd_node{node}", "slurmd", "-D", "-N", f"node{node}")
        states, idle = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"], ["idle"] * self.nodes
        self._wait("all nodes are idle", lambda: self.output(*states).split() == idle)

    def _configuration(self, ports: list[int]) -> str:
        folder, host = self.folder, socket.gethostname().split(".")[0]
        lines = [
            "ClusterName=virtual",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder}/munge.socket",
            "CredType=cred/munge",
            f"StateSaveLocation={folder}/state",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd_%n.pid",
            f"SlurmdSpoolDir={folder}/spool_%n",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1",
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            f"KillWait={self.kill_wait_s}",
            # On a busy machine the daemons may not answer, and a job may not start, within the usual ten seconds.
            "MessageTimeout=60",
            "BatchStartTimeout=120",
            self.settings,
        ]
        lines += [
            f"NodeName=node{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} State=UNKNOWN"
            for node, port in enumerate(ports[1:], 1)
        ]
        lines += [f"PartitionName=main Nodes=node[1-{self.nodes}] Default=YES MaxTime=INFINITE State=UP", ""]
        return "\n".join(lines)

    def _daemon(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "wb") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            self._daemons.append(subprocess.Popen(command, env=self.environment, **streams))

    def _wait(self, condition: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + ANSWER_S
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                if holds():
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"Slurm: not within {ANSWER_S:.0f} s: {condition}\n{self._logs()}")
            time.sleep(0.1)

    def _logs(self) -> str:
        """Return the last lines of each daemon's log."""
        logs = {path.name: path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"== {name}\n" + "\n".join(log.splitlines()[-_LOG_LINES:]) for name, log in logs.items())

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Return different ports, which the system does not give to other processes before the daemons bind them."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)
