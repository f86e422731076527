"""Optional packages: what to type when one is missing, in a clone of the repository or beside a package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires

_OWN = "belvedere"


def extra_command(extra: str) -> str:
    """The commands that install what an extra of belvedere's pyproject.toml names."""
    wanted = " ".join(f"'{each}'" for each in _requirements(extra)) or extra
    return f"`uv sync --extra {extra}` in a clone of belvedere, or `pip install {wanted}`"


def package_command(package: str) -> str:
    """The commands that install a package that belongs to no extra."""
    return f"`uv pip install {package}` in a clone of belvedere, or `pip install {package}`"


def _requirements(extra: str) -> list[str]:
    """What belvedere's metadata says that an extra needs (`tensorboard>=2.16`)."""
    try:
        every = requires(_OWN) or []
    except PackageNotFoundError:  # run from its source, without having been installed
        return []
    divided = [each.partition(";") for each in every]
    quotes = str.maketrans("", "", "'\" ")
    return [what.strip() for what, _, marker in divided if marker.translate(quotes) == f"extra=={extra}"]
