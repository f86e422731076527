"""What this machine lets the process use: CPUs, memory and shared memory, in a container too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
SHARED = Path("/dev/shm")
_UNLIMITED = 1 << 60  # cgroup v1 says so by a number near 2^63


def cpu_count(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """CPUs that this process may keep busy, at least 1.

    The fewest of: those it may be scheduled on, and the CPU time that its control group and those above it
    are given (rounded up).
    """
    allowed = [float(_scheduled())]
    for folder in _groups("cpu", proc, cgroups):
        quota, period = _cpu_limit(folder)
        if quota > 0 and period > 0:
            allowed.append(quota / period)
    return max(1, int(-(-min(allowed) // 1)))


def available_bytes(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Memory that can still be taken before the kernel kills a process for it; None where it is not told.

    The least of: the machine's available memory, and what is left to the control group and those above it.
    What a group holds as cached files counts as free.
    """
    left = []
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            left.append(int(line.split()[1]) * 1024)
    for folder in _groups("memory", proc, cgroups):
        limit, used = _memory_limit(folder)
        if limit is not None:
            left.append(max(0, limit - used))
    return min(left, default=None)


def memory_bytes(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """All the memory that processes here can ever have together, used or not; None where it is not told.

    The least of: the machine's memory and swap, and the limits of the control group and those above it.
    """
    found = []
    meminfo = {line.partition(":")[0]: line for line in _lines(proc / "meminfo")}
    if "MemTotal" in meminfo:
        lines = [meminfo[name] for name in ("MemTotal", "SwapTotal") if name in meminfo]
        found.append(sum(int(line.split()[1]) for line in lines) * 1024)
    limits = [_memory_limit(folder)[0] for folder in _groups("memory", proc, cgroups)]
    return min([*found, *(limit for limit in limits if limit is not None)], default=None)


def shared_bytes(*, folder: Path = SHARED) -> int | None:
    """Free bytes of the shared memory that processes hand tensors over in, 0 where it cannot be written;
    None where there is no such file system, and so no limit of its own."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    if status.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK | os.X_OK):
        return 0
    return status.f_bavail * status.f_frsize


def _scheduled() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have none
        return os.cpu_count() or 1


def _groups(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's control group and of all above it, innermost first.

    In a container the path that the kernel names may lie outside of what is mounted; then only what is there
    counts.
    """
    for line in _lines(proc / "self" / "cgroup"):
        _, names, path = line.split(":", 2)
        if not names:  # version 2: one tree for all
            root = cgroups
        elif controller in names.split(","):
            root = next(
                (cgroups / name for name in (names, controller) if (cgroups / name).is_dir()), cgroups / names
            )
        else:
            continue
        inner = root / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _cpu_limit(folder: Path) -> tuple[float, float]:
    """CPU microseconds per period of so many microseconds; (0, 0) where there is no limit."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if len(words) == 2:
        return (0.0, 0.0) if words[0] == "max" else (float(words[0]), float(words[1]))
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return (0.0, 0.0) if quota is None or period is None or quota <= 0 else (float(quota), float(period))


def _memory_limit(folder: Path) -> tuple[int | None, int]:
    """Bytes allowed (None: no limit) and bytes that could not be given back."""
    for limit_name, used_name, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is None or used is None or limit >= _UNLIMITED:
            continue
        files = [line.split() for line in _lines(folder / "memory.stat")]
        return limit, used - sum(int(words[1]) for words in files if len(words) == 2 and words[0] == cached)
    return None, 0


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
