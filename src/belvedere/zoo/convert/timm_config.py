"""timm's `config.json`: the network that an architecture's name and `model_args` make, and what is not ours.

Every argument is held against the tensors, used, known to change nothing that is evaluated, or refused by
name. An architecture of another name may have another activation or other norms behind the same shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from belvedere.core.errors import WeightsError
from belvedere.nn.spec import BackboneSpec, ResNetSpec, SwinSpec, ViTSpec
from belvedere.nn.spec.count import times
from belvedere.zoo.convert.checkpoint import Asked, Stated
from belvedere.zoo.convert.images import unread

VIT_EPS, SWIN_EPS = 1e-6, 1e-5
"""What timm's (and torchvision's) LayerNorms add to a variance, unless they are told otherwise."""

# width, depth, heads
_VITS = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
_VIT = re.compile(r"(?:vit_(tiny|small|base|large|huge)|deit_(tiny|small|base))_patch(\d+)_(\d+)")
# embed_dim, depths, num_heads
_SWINS = {
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "small": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
}
_SWIN = re.compile(r"swin_(tiny|small|base|large)_patch(\d+)_window(\d+)_(\d+)")
_RESNETS = {
    18: ("basic", [2, 2, 2, 2]),
    26: ("bottleneck", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
    200: ("bottleneck", [3, 24, 36, 3]),
}
_RESNET = re.compile(r"resnet(\d+)")

_TOP = {"architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg"}
_TOP_UNUSED = {"label_names", "label_descriptions", "model_type", "transformers_version", "torch_dtype"}
_TRAINING = {
    "num_classes", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "drop_block_rate", "weight_init", "fix_init", "zero_init_last", "pretrained",
    "scriptable",
    "exportable", "no_jit", "device", "dtype", "dynamic_img_size", "dynamic_img_pad", "strict_img_size",
}  # fmt: skip
"""Arguments that change nothing of what a built network gives of images of its size."""
_ALLOWED: dict[str, dict[str, tuple[Any, ...]]] = {
    "vit": {
        "act_layer": (None, "gelu"),
        "norm_layer": (None,),
        "embed_norm_layer": (None,),
        "class_token": (True,),
        "pos_embed": ("learn",),
        "no_embed_class": (False,),
        "reg_tokens": (0,),
        "pre_norm": (False,),
        "final_norm": (True,),
        "qk_norm": (False,),
        "scale_attn_norm": (False,),
        "scale_mlp_norm": (False,),
        "proj_bias": (True,),
        "init_values": (None,),
        "pool_include_prefix": (False,),
    },
    "swin": {
        "act_layer": (None, "gelu"),
        "norm_layer": (None, "layernorm"),
        "head_dim": (None,),
        "always_partition": (False,),
        "qkv_bias": (True,),
        "global_pool": ("avg",),
    },
    "resnet": {
        "act_layer": (None, "relu"),
        "norm_layer": (None, "batchnorm", "batchnorm2d"),
        "aa_layer": (None,),
        "output_stride": (32,),
        "cardinality": (1,),
        "base_width": (64,),
        "stem_type": ("",),
        "replace_stem_pool": (False,),
        "block_reduce_first": (1,),
        "down_kernel_size": (1,),
        "avg_down": (False,),
        "block_args": (None,),
        "global_pool": ("avg", "fast"),
    },
}
"""Arguments by kind of network, and the values that belvedere's network has."""
_HANDLED = {"vit": {"num_heads", "global_pool", "fc_norm"}, "swin": set(), "resnet": set()}


@dataclass(frozen=True)
class Config:
    """stated: what the tensors leave open; arguments: those of the network, with what its name stands for;
    source: of the feature; told: for a card; known: whether the architecture is one of those listed here."""

    stated: Stated
    arguments: Mapping[str, Any]
    source: str
    told: Mapping[str, str]


def read_config(config: Mapping[str, Any], kind: str | None, asked: Asked, *, origin: str) -> Config:
    """What `config.json` says of a network of this kind.

    Raises `WeightsError` for an architecture of another kind, or of a name that is not known here unless
    `--as` names the network, and for arguments that belvedere's network has not.
    """
    where = f"{origin}: config.json"
    args = _arguments(config, where)
    name = config.get("architecture")
    told = unread(config, _TOP | _TOP_UNUSED | set(_flat_settings(config)), "config.json")
    if name is not None:
        base = _named(name, kind, where)
        if base is None and asked.backbone is None:
            raise WeightsError(
                f"{where} says architecture {name!r}, whose activation and norms belvedere does not know; "
                f"if it "
                "is the same as one that it has, say which with --as timm/NAME (`belvedere import --help`)"
            )
        args = (base or {}) | args
        if base is None:
            told |= {"architecture": f"{name} is not known here; taken for {asked.name}, as --as says"}
    elif args and kind is not None:
        told |= {"architecture": "config.json names none; only its model_args were held against the tensors"}
    source = "pooled" if kind is None else _refuse_arguments(args, kind, where)
    says_eps = name is not None
    eps = {"vit": VIT_EPS, "swin": SWIN_EPS}.get(kind or "") if says_eps else None
    heads = args.get("num_heads") if kind == "vit" else None
    if (
        kind == "vit"
        and "num_heads" in args
        and (isinstance(heads, bool) or not isinstance(heads, int) or heads < 1)
    ):
        raise WeightsError(f"{where} has num_heads {heads!r}, must be a whole number of at least 1")
    image_px = (
        _px(args["img_size"], f"{where} has img_size") if kind == "swin" and "img_size" in args else None
    )
    return Config(Stated(heads, eps, image_px), args, source, told)


def settings_of(config: Mapping[str, Any], *, origin: str) -> Mapping[str, Any]:
    """`pretrained_cfg`, which older files have at the top."""
    settings = config.get("pretrained_cfg", _flat_settings(config))
    if not isinstance(settings, Mapping):
        raise WeightsError(
            f"{origin}: config.json has a pretrained_cfg that is a {type(settings).__name__}, must be an "
            f"object"
        )
    return settings


def _flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "license")
    return {} if "pretrained_cfg" in config else {name: config[name] for name in names if name in config}


def require_agreement(config: Config, spec: BackboneSpec, *, origin: str) -> None:
    """Raise `WeightsError` where an argument says another size than the tensors have."""
    for name, (found, ours) in _sizes(config.arguments, spec).items():
        if found != ours:
            raise WeightsError(
                f"{origin}: config.json says {name} {found!r} (by its architecture or model_args), the "
                f"tensors "
                f"{ours!r}; correct config.json, or give the file alone in a folder without it"
            )


def _sizes(args: Mapping[str, Any], spec: BackboneSpec) -> dict[str, tuple[Any, Any]]:
    """By argument, its value and the tensors'."""
    ours: dict[str, Any] = {"in_chans": 3}
    if isinstance(spec, ViTSpec):
        ours |= {"embed_dim": spec.width, "depth": spec.depth, "patch_size": spec.patch_px}
        ours |= {"img_size": spec.image_px, "qkv_bias": spec.qkv_bias, "num_heads": spec.heads}
    elif isinstance(spec, SwinSpec):
        ours |= {"embed_dim": spec.embed_width, "depths": list(spec.blocks), "num_heads": list(spec.heads)}
        ours |= {"patch_size": spec.patch_px, "img_size": spec.image_px, "window_size": spec.window}
    elif isinstance(spec, ResNetSpec):
        ours |= {"layers": list(spec.blocks), "block": spec.block, "stem_width": spec.planes(0)}
        ours |= {"channels": [spec.planes(stage) for stage in range(4)]}
    found = {
        name: (args[name] if isinstance(value, list) else _plain(args[name]), value)
        for name, value in ours.items()
        if name in args
    }
    if isinstance(spec, ViTSpec | SwinSpec) and "mlp_ratio" in args:
        width, ratio = (
            (spec.width, args["mlp_ratio"])
            if isinstance(spec, ViTSpec)
            else (spec.embed_width, args["mlp_ratio"])
        )
        right = isinstance(ratio, int | float) and not isinstance(ratio, bool) and ratio > 0
        hidden = times(width, spec.mlp_ratio)
        same = right and abs(width * ratio - hidden) < 1 and int(width * ratio) == hidden
        found["mlp_ratio"] = (ratio, ratio if same else hidden / width)
    return found


def _plain(value: Any) -> Any:
    """A pair of equal sides as one number."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def _arguments(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    args = config.get("model_args") or {}
    if not isinstance(args, Mapping):
        raise WeightsError(f"{where} has model_args {args!r}, must be an object")
    pool = config.get("global_pool")
    if pool is not None and args.get("global_pool", pool) != pool:
        raise WeightsError(
            f"{where} says global_pool {pool!r} and, under model_args, {args['global_pool']!r}; which is "
            f"right?"
        )
    return dict(args) | ({} if pool is None else {"global_pool": pool})


def _named(name: Any, kind: str | None, where: str) -> dict[str, Any] | None:
    """What an architecture's name stands for, as arguments; None for a name that is not known here."""
    if not isinstance(name, str):
        raise WeightsError(f"{where} has architecture {name!r}, must be a name")
    plain = name.partition(".")[0]
    base: dict[str, Any] | None = None
    of = None
    if found := _VIT.fullmatch(plain):
        width, depth, heads = _VITS[found[1] or found[2]]
        base = {"embed_dim": width, "depth": depth, "num_heads": heads, "patch_size": int(found[3])}
        base |= {"img_size": int(found[4]), "mlp_ratio": 4.0, "qkv_bias": True}
        of = "vit"
    elif found := _SWIN.fullmatch(plain):
        embed, depths, swin_heads = _SWINS[found[1]]
        base = {"embed_dim": embed, "depths": depths, "num_heads": swin_heads, "patch_size": int(found[2])}
        base |= {"window_size": int(found[3]), "img_size": int(found[4]), "mlp_ratio": 4.0}
        of = "swin"
    elif (found := _RESNET.fullmatch(plain)) and int(found[1]) in _RESNETS:
        block, layers = _RESNETS[int(found[1])]
        base, of = {"block": block, "layers": layers}, "resnet"
    if of is not None and kind is not None and of != kind:
        raise WeightsError(f"{where} says architecture {name!r}; the tensors are of a {kind}")
    return base


def _refuse_arguments(args: Mapping[str, Any], kind: str, where: str) -> str:
    """Raise `WeightsError` for an argument that belvedere's network has not; the source of the feature."""
    allowed = _ALLOWED.get(kind, {})
    compared = {"vit": _VIT_SIZES, "swin": _SWIN_SIZES, "resnet": _RESNET_SIZES}.get(kind, set())
    for name, value in args.items():
        if name in allowed:
            if not any(value is one or (type(value) is type(one) and value == one) for one in allowed[name]):
                words = " or ".join(map(repr, allowed[name]))
                raise WeightsError(f"{where} has {name} {value!r}; belvedere's {kind} has {words}")
        elif name not in compared | _TRAINING | _HANDLED.get(kind, set()):
            raise WeightsError(f"{where} has {name} {value!r}, which belvedere's {kind} does not have")
    return _source(args, where) if kind == "vit" else "pooled"


_VIT_SIZES = {"img_size", "patch_size", "in_chans", "embed_dim", "depth", "mlp_ratio", "qkv_bias"}
_SWIN_SIZES = {
    "img_size",
    "patch_size",
    "in_chans",
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "mlp_ratio",
}
_RESNET_SIZES = {"block", "layers", "in_chans", "stem_width", "channels"}


def _source(args: Mapping[str, Any], where: str) -> str:
    """Which tensor of a ViT is its feature."""
    pool, norm = args.get("global_pool", "token"), args.get("fc_norm")
    if pool in ("token", ""):
        if norm:
            raise WeightsError(
                f"{where} has fc_norm true: a second norm, which belvedere's ViT does not have"
            )
        return "pooled"
    if pool != "avg":
        raise WeightsError(f"{where} has global_pool {pool!r}; belvedere's ViT has 'token' or 'avg'")
    if norm is not False:
        raise WeightsError(
            f"{where} has global_pool 'avg', which takes the mean of patches before the norm (fc_norm); "
            "belvedere's ViT takes it after (fc_norm false)"
        )
    return "mean"


def _px(value: Any, what: str) -> int:
    side = _plain(value)
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise WeightsError(f"{what} {value!r}, must be one whole number of pixels")
    return side
