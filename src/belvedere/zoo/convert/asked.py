"""What `--as` means: a recipe, a system, an architecture, or a system and an architecture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pydantic import TypeAdapter

from belvedere.core.errors import WeightsError
from belvedere.core.match import with_nearest
from belvedere.nn.spec import BackboneSpec
from belvedere.nn.spec.cvt import CVT_NAMES, cvt_spec
from belvedere.nn.spec.resnet import RESNET_NAMES, resnet_spec
from belvedere.nn.spec.swin import SWIN_NAMES, swin_spec
from belvedere.nn.spec.vil import VIL_NAMES, vil_spec
from belvedere.nn.spec.vit import VIT_NAMES, vit_spec
from belvedere.recipe.shipped import recipe_names, recipe_text
from belvedere.recipe.text import read
from belvedere.zoo.convert.checkpoint import Asked

SYSTEMS = ("msn", "swav", "deepcluster", "sela", "esvit", "mugs", "huggingface", "timm", "torchvision")

_MUGS = {
    "vit_tiny": "deit_tiny",
    "vit_small": "deit_small",
    "vit_base": "deit_base",
    "vit_large": "deit_large",
}
"""What Mugs' code calls the same networks."""

_SPECS: Mapping[str, Callable[[], BackboneSpec]] = {
    **{name: lambda name=name: vit_spec(name) for name in VIT_NAMES},  # type: ignore[misc]
    **{name: lambda name=same: vit_spec(name) for name, same in _MUGS.items()},  # type: ignore[misc]
    **{name: lambda name=name: resnet_spec(name) for name in RESNET_NAMES},  # type: ignore[misc]
    **{name: lambda name=name: swin_spec(name) for name in SWIN_NAMES},  # type: ignore[misc]
    **{name: lambda name=name: cvt_spec(name) for name in CVT_NAMES},  # type: ignore[misc]
    **{name: lambda name=name: vil_spec(name, mode=0) for name in VIL_NAMES},  # type: ignore[misc]
}
ARCHITECTURES = tuple(_SPECS)


def asked_for(name: str | None) -> Asked:
    """What is meant by `name`: `msn/vits16` (a recipe, with its system and backbone), `esvit/swin_tiny`,
    `sela` or `deit_small`.

    Raises `WeightsError` for a name that is none of these, with the nearest.
    """
    if name is None:
        return Asked()
    if name in recipe_names():
        values = read(recipe_text(name)).values
        text = json.dumps(values["backbone"])
        backbone: BackboneSpec = TypeAdapter(BackboneSpec).validate_json(text)
        return Asked(name, values["method"]["name"], backbone, name, exact=True)
    system, slash, architecture = name.rpartition("/")
    if not slash and name in SYSTEMS:
        return Asked(name, name)
    if slash and system not in SYSTEMS:
        raise WeightsError(f"--as {name}: no system is called {with_nearest(system, SYSTEMS)}; {_choices()}")
    if architecture not in _SPECS:
        shown = with_nearest(architecture, (*ARCHITECTURES, *(() if slash else SYSTEMS)))
        raise WeightsError(f"--as {name}: no architecture is called {shown}; {_choices()}")
    return Asked(name, system or None, _SPECS[architecture]())


def _choices() -> str:
    return (
        f"choose from {', '.join(ARCHITECTURES)}, one of the systems {', '.join(SYSTEMS)} before it or "
        "alone, or a recipe's name (belvedere recipes)"
    )
