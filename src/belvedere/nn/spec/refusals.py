"""Why a network cannot take an image or give a feature, in words that several kinds share; "" if it can."""

from __future__ import annotations


def no_whole_patches(px: int, patch_px: int) -> str:
    """Why `px` pixels are no whole number of patches of `patch_px`, and the nearest that are."""
    below = px - px % patch_px
    if px == below:
        return ""
    nearest = f"{below} and {below + patch_px}" if below else f"{patch_px}"
    return f"has no whole patches of {patch_px} px; the nearest that it can take are {nearest}"


def no_class_token(network: str, source: str) -> str:
    """Why a network without a class token cannot give features of this `source`. network: "a Swin"."""
    return f"{network} has no class token; give pooled or mean" if "cls" in source else ""


def norm_of_last_stage(norm: str, count: int, blocks: tuple[int, ...]) -> str:
    """Why the final norm, which is as wide as the last stage, cannot be put on the last `count` outputs of a
    network with so many blocks in its stages."""
    if norm != "all" or count <= blocks[-1]:
        return ""
    return (
        f"does not fit {count} blocks: the final norm is as wide as the last stage, "
        f"which has {blocks[-1]} of them; give last_stage"
    )
