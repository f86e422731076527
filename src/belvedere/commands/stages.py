"""What the commands that extract features say of the images, and their progress."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from belvedere.commands.option_words import in_options
from belvedere.core.log import process_rank, say
from belvedere.engine.progress import Progress

if TYPE_CHECKING:
    from belvedere.data.sources.source import Source


def tell_remarks(source: Source, path: str = "--data", *, most: int = 8) -> None:
    """Say what a person should know about a source; path: the option that names it."""
    from belvedere.data.sources import remarks

    told = remarks(source)
    for remark in told[:most]:
        say(f"{source.name}: {in_options(remark, path)}")
    if len(told) > most:
        say(f"{source.name}: {len(told) - most} more remarks; `belvedere data check --json FILE` lists them")


class Stages:
    """One bar after the other: `stages(name, images done, images in all)`; use as a context manager."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._progress: Progress | None = None

    def __call__(self, name: str, done: int, total: int) -> None:
        if self._progress is None or self._name != name:
            self._close(None)
            show = process_rank() == 0
            self._name = name
            self._progress = Progress(total, images_per_step=1, title=f"features of {name}", show=show)
            self._progress.__enter__()
        self._progress.update(done)
        if done >= total:
            self._close(None)

    def _close(self, error: BaseException | None) -> None:
        if self._progress is not None:
            self._progress.__exit__(type(error) if error else None, error, None)
            self._progress = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(error)
