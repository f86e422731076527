"""`Settings`: the base of every part of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

Contradictions = Iterator[tuple[str, str]]
"""Of a section: (key below it, or "" for the section, what is wrong), one for each mistake."""

KEYS_ALONE = {"contradictions": "are asked for afterwards"}
"""As the context of a validation: each key is checked alone, so that whoever reports all mistakes at once has
the section to ask for its `contradictions`."""


class Settings(BaseModel):
    """Frozen, strict and closed: an unknown key, a wrong type, an infinite number or a late assignment is an
    error."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    def contradictions(self) -> Iterable[tuple[str, str]]:
        """What cannot stand together in this section, though every key alone may be so."""
        return ()

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        if info.context is not KEYS_ALONE:
            found = [f"{key}: {words}" if key else words for key, words in self.contradictions()]
            if found:
                raise ValueError("; ".join(found))
        return self
