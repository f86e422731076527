"""The ranges that options of several methods have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
Epochs = Annotated[int, Field(ge=0)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Prototypes = Annotated[int, Field(ge=2)]
