"""`Settings`: the base of every part of a recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, strict and closed: an unknown key, a wrong type, an infinite number or a late assignment is an
    error."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )
