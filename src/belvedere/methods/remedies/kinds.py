"""The kinds of collapse, by name."""

from __future__ import annotations

from belvedere.engine.remedy import Kind

NOT_FINITE: Kind = "non-finite values"
TAKES_ALL: Kind = "one prototype takes all"
CONSTANT: Kind = "constant embedding"
UNIFORM: Kind = "uniform assignment"
DEAD: Kind = "dead prototypes"
