"""A network in words: of what kind it is, in a line, and in the cell of a table."""

from __future__ import annotations

from belvedere.nn.spec import BackboneSpec, ResNetSpec, SwinSpec, ViTSpec

KINDS = {"vit": "ViT", "resnet": "ResNet", "swin": "Swin", "cvt": "CvT", "vil": "ViL"}
"""What a person calls a kind of network, by its name in a recipe."""

RESNETS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
"""How many layers a ResNet is named after, by its blocks."""

# width and depth, embed_width and blocks: the sizes that have letters
_VITS = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
_SWINS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "T",
    (96, (2, 2, 18, 2)): "S",
    (128, (2, 2, 18, 2)): "B",
    (192, (2, 2, 18, 2)): "L",
}


def kind_of(spec: BackboneSpec) -> str:
    """The kind of network, with what sets it apart from others of its kind."""
    if isinstance(spec, ViTSpec) and spec.stem == "conv":
        return "ViT with a convolutional stem"
    return KINDS[spec.name]


def in_words(spec: BackboneSpec) -> str:
    """Kind and sizes, in a line of their own."""
    if isinstance(spec, ViTSpec):
        return (
            f"ViT, width {spec.width}, depth {spec.depth}, {spec.heads} heads, patches of {spec.patch_px} px"
        )
    blocks = ", ".join(map(str, spec.blocks))
    if isinstance(spec, ResNetSpec):
        return f"ResNet, {spec.block} blocks {blocks}, {spec.widen} times as wide"
    return f"{KINDS[spec.name]}, blocks {blocks}, windows of {spec.window} cells"


def short_name(spec: BackboneSpec) -> str:
    """At most some 25 characters: the field's name where the sizes have one, else the sizes."""
    if isinstance(spec, ViTSpec):
        letter = _VITS.get((spec.width, spec.depth))
        size = f"-{letter}" if letter else f" {spec.width}x{spec.depth}"
        return f"ViT{size}/{spec.patch_px}"
    blocks = "-".join(map(str, spec.blocks))
    if isinstance(spec, ResNetSpec):
        number = RESNETS.get((spec.block, spec.blocks))
        wide = f" w{spec.widen}" if spec.widen > 1 else ""
        return f"ResNet{f'-{number}' if number else f' {blocks}'}{wide}"
    letter = _SWINS.get((spec.embed_width, spec.blocks)) if isinstance(spec, SwinSpec) else None
    return f"{KINDS[spec.name]}{f'-{letter}' if letter else f' {blocks}'}, window {spec.window}"
