"""How images are prepared for an imported network: by what the files beside it say, else by its own size.

transformers has it in `preprocessor_config.json`, timm in `config.json` under `pretrained_cfg`. What they say
and belvedere cannot do (another interpolation, an image that is not square) is refused by name; what nobody
says is assumed, and told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from belvedere.core.errors import WeightsError
from belvedere.nn.spec import BackboneSpec, FeatureSpec, ResNetSpec, SwinSpec, ViLSpec, ViTSpec
from belvedere.zoo.convert.checkpoint import IMAGENET_MEAN, IMAGENET_STD

Numbers = tuple[float, float, float]

_USUAL_PX, _SMALL_PX = 224, 32
_MOST_PX = 1 << 16
_LEAST_SHARE = 0.01  # of the crop in the resized image
_LEAST, _MOST = 1e-6, 1e6  # of a mean or a standard deviation of values in [0, 1]
_SHARE = 256 / 224  # of the shorter side to the crop, in every published evaluation
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
_UNUSABLE = ("do_pad", "do_flip_channel_order", "rescale_offset", "offset", "do_reduce_labels")
"""Steps of transformers' image processors that belvedere has not."""
_HUGGINGFACE_KEYS = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std", *_UNUSABLE,
    # of no effect on the pixels of a color image
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "return_tensors",
    "input_data_format", "data_format", "device", "disable_grouping", "default_to_square", "pad_size",
    "image_seq_length",
}  # fmt: skip
_TIMM_KEYS = {
    "input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "license",
    # where weights come from, and what training or another size would need
    "tag", "custom_load", "fixed_input_size", "num_classes", "pool_size", "first_conv", "classifier", "url",
    "hf_hub_id", "hf_hub_filename", "file", "source", "state_dict", "architecture", "origin_url",
    "paper_name",
    "paper_ids", "description", "label_offset", "label_names", "label_descriptions", "min_input_size",
    "test_input_size", "test_crop_pct", "notes", "crop_border_pixels",
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """mean, std: per channel, of values in [0, 1]; told: what was assumed or differs, for a card."""

    resize_px: int
    crop_px: int
    interpolation: str
    mean: Numbers
    std: Numbers
    told: Mapping[str, str] = field(default_factory=dict)

    def of(self, features: FeatureSpec) -> FeatureSpec:
        """The feature of images that are prepared so."""
        sizes = {"resize_px": self.resize_px, "crop_px": self.crop_px, "interpolation": self.interpolation}
        return FeatureSpec.model_validate(features.model_dump() | sizes)


def own_px(spec: BackboneSpec) -> int:
    """The size of images that a network was built for: of its tables, where it has any."""
    if isinstance(spec, ViTSpec | SwinSpec | ViLSpec):
        return spec.image_px
    return _SMALL_PX if isinstance(spec, ResNetSpec) and spec.stem == "small" else _USUAL_PX


def assumed_images(
    spec: BackboneSpec,
    *,
    interpolation: str,
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
    whose: str = "ImageNet",
) -> Prepared:
    """Where nothing is said: the network's own size, and a usual normalization."""
    px = own_px(spec)
    told = {
        "images": f"{px} px, {interpolation} resizing, and the mean and standard deviation of {whose} assumed"
        "; the file does not say (correct features, mean and std in card.yaml if others are right)"
    }
    return Prepared(max(px, round(px * _SHARE)), px, interpolation, mean, std, told)


def huggingface_images(settings: Mapping[str, Any], spec: BackboneSpec, *, origin: str) -> Prepared:
    """What `preprocessor_config.json` says; {} where there is none."""
    if not settings:
        return assumed_images(spec, interpolation="bilinear")
    where = f"{origin}: preprocessor_config.json"
    for key, value in settings.items():
        is_step = key.startswith("do_") and key not in _HUGGINGFACE_KEYS
        if value and (is_step or key in _UNUSABLE):
            raise WeightsError(f"{where} has {key} {value!r}, which belvedere cannot do")
    told = unread(settings, _HUGGINGFACE_KEYS, "preprocessor_config.json")
    resize_px, crop_px, words = _huggingface_sizes(settings, spec, where)
    assumptions = [words] if words else []
    resample = settings.get("resample")
    if resample is None:
        assumptions.append("bilinear resizing assumed")
    mean, std, normal = _huggingface_normalization(settings, where)
    assumptions += normal
    if assumptions:
        told |= {"images": "; ".join(assumptions)}
    kind = _interpolation("bilinear" if resample is None else resample, f"{where} has resample")
    return _checked(Prepared(resize_px, crop_px, kind, mean, std, told), spec, where)


def _huggingface_sizes(settings: Mapping[str, Any], spec: BackboneSpec, where: str) -> tuple[int, int, str]:
    """The shorter side, the crop, and what of it is not what transformers does."""
    crops = _flag(settings, "do_center_crop", False, where)
    given = settings.get("crop_size") if crops else None
    if crops and given is None:
        raise WeightsError(f"{where} has do_center_crop true and no crop_size; say there what is cut out")
    crop = None if given is None else _side(given, f"{where} has crop_size")[0]
    if not _flag(settings, "do_resize", True, where):
        px = crop or own_px(spec)
        return px, px, f"do_resize is false there; images of other sizes are resized to {px} px here"
    if settings.get("size") is None:
        px = crop or own_px(spec)
        return px, px, f"{px} px assumed; preprocessor_config.json has no size"
    px, keeps_aspect = _side(settings["size"], f"{where} has size")
    if crop is not None and crop <= px:
        words = (
            ""
            if keeps_aspect
            else f"there an image is squeezed to {px} x {px} px before its middle is cut out"
        )
        return px, crop, words
    if crop is not None:
        raise WeightsError(
            f"{where} has crop_size {crop} and size {px}; a crop cannot be larger than the image"
        )
    how = "keeps all of a longer side" if keeps_aspect else f"squeezes an image to {px} x {px} px"
    return px, px, f"transformers {how}; here it is the middle of an image whose shorter side is {px} px"


def _huggingface_normalization(settings: Mapping[str, Any], where: str) -> tuple[Numbers, Numbers, list[str]]:
    """Mean and standard deviation of values in [0, 1], and what was assumed of them."""
    scale = 255.0
    if _flag(settings, "do_rescale", True, where):
        scale = 255.0 * _number(settings.get("rescale_factor", 1 / 255), f"{where} has rescale_factor")
        scale = 1.0 if abs(scale - 1.0) < 1e-6 else scale
    if not _flag(settings, "do_normalize", True, where):
        std = _three([1 / scale] * 3, f"{where} gives, by its rescale_factor, a std of", positive=True)
        return (0.0, 0.0, 0.0), std, []
    found, assumptions = [], []
    for name, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        if settings.get(name) is None:
            assumptions.append(f"ImageNet's {name.removeprefix('image_')} assumed")
        given = usual if settings.get(name) is None else settings[name]
        what, positive = f"{where} has {name}", name == "image_std"
        values = _three(given, what, positive=positive)
        if settings.get(name) is not None and scale != 1.0:
            shown = f"{what} {given!r}, which is, by its rescale_factor,"
            values = _three(_scaled(values, scale), shown, positive=positive)
        found.append(values)
    return found[0], found[1], assumptions


def timm_images(
    settings: Mapping[str, Any], spec: BackboneSpec, *, interpolation: str, origin: str
) -> Prepared:
    """What timm's `pretrained_cfg` says; {} where there is none."""
    if not any(settings.get(key) is not None for key in ("input_size", "mean", "std")):
        return assumed_images(spec, interpolation=interpolation)
    where = f"{origin}: config.json"
    mean, std, assumptions = IMAGENET_MEAN, IMAGENET_STD, []
    if settings.get("mean") is None or settings.get("std") is None:
        assumptions.append("ImageNet's mean and standard deviation assumed")
    else:
        mean = _three(settings["mean"], f"{where} has mean")
        std = _three(settings["std"], f"{where} has std", positive=True)
    px = own_px(spec)
    if settings.get("input_size") is None:
        assumptions.append(f"{px} px assumed")
    else:
        size = settings["input_size"]
        if not isinstance(size, list) or len(size) != 3 or size[0] != 3:
            raise WeightsError(f"{where} has input_size {size!r}, must be [3, height, width]")
        px = _side(size[1:], f"{where} has input_size")[0]
    mode = settings.get("crop_mode") or "center"
    if mode == "squash":
        assumptions.append(f"timm squeezes an image to {px} x {px} px; here it is the middle that is cut out")
    elif mode != "center":
        raise WeightsError(f"{where} has crop_mode {mode!r}; belvedere cuts out the middle (center)")
    share = settings.get("crop_pct")
    if share is not None and not _LEAST_SHARE <= _number(share, f"{where} has crop_pct") <= 1:
        raise WeightsError(f"{where} has crop_pct {share!r}, must be from {_LEAST_SHARE:g} to 1")
    resize = px * _SHARE if share is None else px / share
    resize_px = round(resize) if abs(resize - round(resize)) < 1e-3 or share is None else math.floor(resize)
    kind = _interpolation(settings.get("interpolation") or interpolation, f"{where} has interpolation")
    told = {"images": "; ".join(assumptions)} if assumptions else {}
    return _checked(Prepared(max(px, resize_px), px, kind, mean, std, told), spec, where)


def timm_unread(settings: Mapping[str, Any]) -> dict[str, str]:
    """The keys of `pretrained_cfg` that nothing here knows."""
    return unread(settings, _TIMM_KEYS, "config.json, pretrained_cfg")


def unread(settings: Mapping[str, Any], known: Iterable[str], name: str) -> dict[str, str]:
    """A note of the keys of a settings file that were read and are not known; {} if there are none."""
    names = sorted(str(key) for key in set(settings) - set(known))
    return {f"not used of {name}": f"{len(names)}: {', '.join(names)}"} if names else {}


def _checked(prepared: Prepared, spec: BackboneSpec, where: str) -> Prepared:
    if words := spec.refusal(prepared.crop_px):
        raise WeightsError(f"{where} gives images of {prepared.crop_px} px, which {words}")
    return prepared


def _side(value: Any, what: str) -> tuple[int, bool]:
    """The side of a square, and whether it is that of the shorter side alone."""
    keeps_aspect, sides = False, [value]
    if isinstance(value, Mapping):
        keeps_aspect = set(value) == {"shortest_edge"}
        names = ("shortest_edge",) if keeps_aspect else ("height", "width")
        if not keeps_aspect and set(value) != set(names):
            raise WeightsError(f"{what} {value!r}; give height and width, or shortest_edge")
        sides = [value[name] for name in names]
    elif isinstance(value, list) and len(value) == 2:
        sides = value
    if any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise WeightsError(f"{what} {value!r}, must be whole numbers of pixels, at least 1")
    if len(set(sides)) > 1:
        raise WeightsError(f"{what} {value!r}; belvedere's images are square")
    if sides[0] > _MOST_PX:
        raise WeightsError(f"{what} {value!r}, must be at most {_MOST_PX} pixels")
    return sides[0], keeps_aspect


def _interpolation(value: Any, what: str) -> str:
    hashable = isinstance(value, int | str) and not isinstance(value, bool)
    key = value.lower() if isinstance(value, str) else value
    if not hashable or key not in _INTERPOLATIONS:
        raise WeightsError(f"{what} {value!r}; belvedere resizes images bilinear (2) or bicubic (3)")
    return _INTERPOLATIONS[key]


def _flag(settings: Mapping[str, Any], name: str, usual: bool, where: str) -> bool:
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise WeightsError(f"{where} has {name} {value!r}, must be true or false")
    return usual if value is None else value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise WeightsError(f"{what} {value!r}, must be a number above 0")
    return float(value)


def _three(values: Any, what: str, *, positive: bool = False) -> Numbers:
    right = isinstance(values, list | tuple) and len(values) == 3
    numbers = list(values) if right else []
    if not right or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise WeightsError(f"{what} {values!r}, must be three numbers")
    if any(not abs(v) <= _MOST or (positive and not v >= _LEAST) for v in numbers):
        kind = f"positive numbers from {_LEAST:g}" if positive else f"numbers from {-_MOST:g}"
        raise WeightsError(f"{what} {list(values)!r}, must be three {kind} to {_MOST:g}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _scaled(values: Numbers, scale: float) -> Numbers:
    return values if scale == 1.0 else (values[0] / scale, values[1] / scale, values[2] / scale)
