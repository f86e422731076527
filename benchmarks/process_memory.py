"""The memory of this process, as Linux tells it in /proc/self/status."""

from __future__ import annotations

from pathlib import Path


def memory_mib(field: str) -> float:
    """VmRSS: what is held now. VmHWM: the most that ever was, of this process alone; `getrusage` counts what
    the parent held when it started the process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
