"""What this machine is and how busy it is, read from /proc and /sys; elsewhere it says `unknown`.

Facts stay the same from run to run (`machine_facts`); conditions do not (`machine_conditions`);
counters tell what happened between two moments (`read_cpu_counters`, `usage_between`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CpuCounters",
    "CpuUsage",
    "gpu_facts",
    "machine_conditions",
    "machine_facts",
    "peak_rss_bytes",
    "processor_name",
    "read_cpu_counters",
    "usable_cores",
    "usage_between",
]

UNKNOWN = "unknown"
_PROC = Path("/proc")
_CPU = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
# What runtimes choose their kernels by, as /proc/cpuinfo spells it.
_FLAGS = re.compile(
    r"avx|avx2|fma|f16c|avx512\w+|avx_vnni\w*|amx_\w+|asimd\w*|sve\w*|i8mm|bf16|fphp"
)
_NVIDIA_SMI_SECONDS = 10


@dataclass(frozen=True, slots=True)
class CpuCounters:
    """Processor time since the machine started, of the cores that this process may use.

    Attributes:
        total_s: Of all states.
        busy_s: Neither idle nor waiting for a disk.
        steal_s: Given to other virtual machines by the hypervisor.
        own_s: Of this process and its threads.
    """

    total_s: float
    busy_s: float
    steal_s: float
    own_s: float


@dataclass(frozen=True, slots=True)
class CpuUsage:
    """What the usable cores did between two moments, as shares of their time.

    Attributes:
        seconds: Core seconds between the moments.
        own_percent: This process.
        other_percent: Other programs.
        steal_percent: Taken away by the hypervisor.
    """

    seconds: float
    own_percent: float
    other_percent: float
    steal_percent: float


def _text(path: Path) -> str:
    """Return a file's text, or "" where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def processor_name() -> str:
    """Return the processor's model name."""
    match = re.search(r"^model name\s*:\s*(.+)$", _text(_PROC / "cpuinfo"), re.M | re.I)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many logical cores this process may run on (affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_facts() -> dict[str, str]:
    """Return cores, their inference instructions, clocks and memory; the same from run to run."""
    cpuinfo = _text(_PROC / "cpuinfo")
    flags = re.search(r"^(?:flags|features)\s*:\s*(.+)$", cpuinfo, re.M | re.I)
    found = [f for f in flags.group(1).split() if _FLAGS.fullmatch(f)] if flags else []
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text(_PROC / "meminfo"), re.M)
    return {
        "cores_logical": str(os.cpu_count() or UNKNOWN),
        "cores_physical": _physical_cores(cpuinfo),
        "cores_quota": _quota(_text(_CGROUP / "cpu.max") or _old_quota()),
        "instructions": " ".join(sorted(found)) or UNKNOWN,
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor") or UNKNOWN,
        "clock_max_mhz": _mhz(_text(_CPU / "cpu0/cpufreq/cpuinfo_max_freq")),
        "memory_gib": f"{int(memory.group(1)) / 2**20:.1f}" if memory else UNKNOWN,
    }


def machine_conditions() -> dict[str, str]:
    """Return what changes while a machine runs: its load and the clock of its cores."""
    try:
        load = " ".join(f"{x:.2f}" for x in os.getloadavg())
    except (OSError, AttributeError):  # Windows has none
        load = UNKNOWN
    return {"load_average": load, "clock_mhz": _current_clock()}


def gpu_facts() -> dict[str, str]:
    """Return name, driver and clocks of each GPU that nvidia-smi sees; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    try:
        done = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {"gpu": f"{UNKNOWN} (nvidia-smi does not answer)"}
    return {f"gpu{i}": line.strip() for i, line in enumerate(done.stdout.splitlines())}


def _physical_cores(cpuinfo: str) -> str:
    """Count distinct (socket, core) pairs.

    >>> _physical_cores("physical id : 0\\ncore id : 0\\n\\nphysical id : 0\\ncore id : 0")
    '1'
    """
    pairs = set()
    for block in cpuinfo.split("\n\n"):
        socket = re.search(r"^physical id\s*:\s*(\d+)", block, re.M)
        core = re.search(r"^core id\s*:\s*(\d+)", block, re.M)
        if socket and core:
            pairs.add((socket.group(1), core.group(1)))
    return str(len(pairs)) if pairs else UNKNOWN


def _quota(text: str) -> str:
    """Word a control group's `cpu.max`.

    >>> _quota("150000 100000"), _quota("max 100000"), _quota("")
    ('1.5', 'none', 'unknown')
    """
    parts = text.split()
    if len(parts) != 2:
        return UNKNOWN
    return "none" if parts[0] == "max" else f"{int(parts[0]) / int(parts[1]):g}"


def _old_quota() -> str:
    """Return the quota of control groups of version 1 in the form of version 2."""
    quota = _text(_CGROUP / "cpu/cpu.cfs_quota_us")
    period = _text(_CGROUP / "cpu/cpu.cfs_period_us")
    return f"{'max' if quota == '-1' else quota} {period}"


def _mhz(khz: str) -> str:
    return f"{int(khz) / 1e3:.0f}" if khz.isdigit() else UNKNOWN


def _current_clock() -> str:
    governed = _mhz(_text(_CPU / "cpu0/cpufreq/scaling_cur_freq"))
    if governed != UNKNOWN:
        return governed
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(_PROC / "cpuinfo"), re.M)
    return f"{max(float(f) for f in found):.0f}" if found else UNKNOWN


def read_cpu_counters() -> CpuCounters | None:
    """Return the counters of now, or None where /proc/stat cannot be read."""
    own = os.times()
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return counters_from_stat(_text(_PROC / "stat"), mine, own.user + own.system)


def counters_from_stat(text: str, cores: set[int], own_s: float) -> CpuCounters | None:
    """Sum the lines of some cores in the text of /proc/stat.

    Args:
        text: The file's text; its numbers are ticks of user, nice, system, idle, iowait, irq,
            softirq, steal.
        cores: Numbers of the cores that count.
        own_s: Processor seconds of this process.
    """
    tick = 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
    total = idle = steal = 0.0
    for line in text.splitlines():
        match = re.match(r"cpu(\d+) (.+)$", line)
        if match is None or int(match.group(1)) not in cores:
            continue
        ticks = [int(v) for v in match.group(2).split()[:8]]
        if len(ticks) < 8:
            return None
        total += sum(ticks)
        idle += ticks[3] + ticks[4]
        steal += ticks[7]
    if total == 0:
        return None
    return CpuCounters(total * tick, (total - idle - steal) * tick, steal * tick, own_s)


def usage_between(before: CpuCounters | None, after: CpuCounters | None) -> CpuUsage | None:
    """Return what happened between two readings; None when there is nothing to tell.

    >>> usage_between(CpuCounters(0, 0, 0, 0), CpuCounters(10, 6, 1, 4))
    CpuUsage(seconds=10, own_percent=40.0, other_percent=20.0, steal_percent=10.0)
    """
    if before is None or after is None or after.total_s <= before.total_s:
        return None
    total = after.total_s - before.total_s
    own = after.own_s - before.own_s
    other = max(after.busy_s - before.busy_s - own, 0.0)
    steal = after.steal_s - before.steal_s
    return CpuUsage(total, 100.0 * own / total, 100.0 * other / total, 100.0 * steal / total)


def peak_rss_bytes() -> int | None:
    """Return the most resident memory that this process ever had, or None where nobody tells.

    Linux counts it from the start of the program; pages shared with other processes are included.
    """
    match = re.search(r"^VmHWM:\s*(\d+) kB", _text(_PROC / "self/status"), re.M)
    if match:
        return int(match.group(1)) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
