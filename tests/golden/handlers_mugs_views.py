"""Mugs' views: which crop is made how, RandAugment's levels, and what its operations do to an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from belvedere.data.spec import Blur, Erasing, Jitter, Photometry, RandAugment, Strong, ViewSpec
from belvedere.data.views.draw import Column, draw, view_key, weak_images
from belvedere.data.views.randaugment import Operation, arguments
from belvedere.data.views.row import ARGUMENTS, BICUBIC, NUM_COLUMNS, OPERATIONS
from belvedere.data.views.strong import StrongCrop, crop_strong
from golden import compare

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]

OPERATION = {
    "AutoContrast": Operation.AUTO_CONTRAST,
    "Equalize": Operation.EQUALIZE,
    "Invert": Operation.INVERT,
    "Rotate": Operation.ROTATE,
    "PosterizeIncreasing": Operation.POSTERIZE,
    "SolarizeIncreasing": Operation.SOLARIZE,
    "SolarizeAdd": Operation.SOLARIZE_ADD,
    "ColorIncreasing": Operation.COLOR,
    "ContrastIncreasing": Operation.CONTRAST,
    "BrightnessIncreasing": Operation.BRIGHTNESS,
    "SharpnessIncreasing": Operation.SHARPNESS,
    "ShearX": Operation.SHEAR_X,
    "ShearY": Operation.SHEAR_Y,
    "TranslateXRel": Operation.TRANSLATE_X,
    "TranslateYRel": Operation.TRANSLATE_Y,
}
_COPIED = 10


def _views(prob: float, local_crops: int, *, vanilla: bool) -> dict[str, ViewSpec]:
    """The roles in the order of the paper's crops; prob: of a weak view."""
    changes = RandAugment(operations=2, p=0.5, magnitude=9.0, magnitude_std=0.5, fill=(124, 116, 104))
    erasing = Erasing(p=0.25, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))

    def one(px: int, blur: float, *, count: int = 1, solarize: float = 0.0, **rest: Any) -> ViewSpec:
        looks = Photometry(
            flip=0.5,
            jitter=Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
            gray=0.2,
            blur=Blur(p=blur, radius=(0.1, 2.0)),
            solarize=solarize,
        )
        if rest.pop("coin", None) is not None and prob < 1.0:
            coin = "image" if px == 224 else "view"
            rest["strong"] = Strong(p=1.0 - prob, coin=coin, randaugment=changes, erasing=erasing)
        scale = (0.25, 1.0) if px == 224 else (0.05, 0.25)
        return ViewSpec(
            count=count,
            px=px,
            scale=scale,
            aspect=(3 / 4, 4 / 3),
            interpolation="bicubic",
            photometry=looks,
            **rest,
        )

    student = [{"copy_of": "teacher_1"}, {"copy_of": "teacher_2"}] if vanilla else 2 * [{"coin": True}]
    views = {
        "teacher_1": one(224, 1.0),
        "teacher_2": one(224, 0.1, solarize=0.2),
        "global_1": one(224, 1.0, **student[0]),
        "global_2": one(224, 0.1, solarize=0.2, **student[1]),
    }
    return views | ({"local": one(96, 0.5, count=local_crops, coin=True)} if local_crops else {})


def _code(spec: ViewSpec, row: np.ndarray) -> int:
    """What the case calls a view made by this row [P] of this spec."""
    local = spec.px == 96
    if row[Column.STRONG] > 0:
        return 5 if local else 3
    return 4 if local else 2 if spec.photometry.solarize > 0 else 1


def _assembled(views: dict[str, ViewSpec], draws: list[float]) -> tuple[list[int], bool]:
    """The codes of one image's crops, and its weak flag, from the recorded tosses in their order."""
    where, size, left = np.arange(1), np.array([[300, 400]]), iter(draws)
    rows: dict[str, np.ndarray] = {}
    image_coin = None
    for role, spec in views.items():
        coins = None
        if spec.copy_of is None and spec.strong is not None:
            if spec.strong.coin == "image":
                image_coin = next(left) if image_coin is None else image_coin
                coins = np.full((1, spec.count), image_coin)
            else:
                coins = np.array([[next(left) for _ in range(spec.count)]])
        rows[role] = draw(spec, view_key(0, 0, spec.copy_of or role), where, size, coins=coins)
    codes = [
        _code(spec, row) + (_COPIED if spec.copy_of is not None else 0)
        for role, spec in views.items()
        for row in rows[role][0]
    ]
    weak = weak_images({role: spec for role, spec in views.items() if spec.copy_of is None}, rows)
    return codes, weak is None or bool(weak[0])


def check_augmentation_assembly(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    prob, local_crops = args["prob"], args["local_crops_number"]
    settings = ((prob, False), (prob, True), (1.0, False))
    codes, flags = [], []
    for weak_share, vanilla in settings:
        views = _views(weak_share, local_crops, vanilla=vanilla)
        made = [_assembled(views, draws.tolist()) for draws in arrays["in_draws"]]
        codes.append([each for each, _ in made])
        flags.append([weak for _, weak in made])
    compare(case, "out_codes", np.array(codes), arrays["out_codes"])
    compare(case, "out_weak_flag", np.array(flags, dtype=np.int64), arrays["out_weak_flag"])


def check_randaugment_levels(case: Case, arrays: Arrays) -> None:
    magnitudes = np.array(case["args"]["magnitudes"], dtype=np.float64)
    for name, expected in arrays.items():
        sign, _, operation = name.partition(".")
        numbers = np.full(len(magnitudes), int(OPERATION[operation]))
        negative = np.full(len(magnitudes), sign == "out_minus")
        compare(case, name, arguments(numbers, magnitudes, negative), expected)


def check_randaugment_ops(case: Case, arrays: Arrays) -> None:
    args, image = case["args"], arrays["in_image"]
    for name, expected in arrays.items():
        if name == "in_image":
            continue
        operation = OPERATION[name.removeprefix("out_")]
        level = arguments(
            np.array([int(operation)]), np.array([float(args["magnitude"])]), np.array([args["u"] > 0.5])
        )
        bicubic = args["resample"] == "bicubic"
        found = _augmented(image, operation, float(level[0]), bicubic=bicubic, fill=tuple(args["fill"]))
        apart = np.abs(found.astype(np.int64) - expected.astype(np.int64))
        assert apart.max() <= case["atol"], f"{name}: {apart.max()} levels apart"


def _augmented(
    image: np.ndarray, operation: Operation, argument: float, *, bicubic: bool, fill: tuple[int, int, int]
) -> np.ndarray:
    """The image [H, W, 3] after one operation, by crops of the renderer that are copied and not resized."""
    row = np.zeros(NUM_COLUMNS)
    row[[Column.STRONG, OPERATIONS.start, ARGUMENTS.start, BICUBIC.start]] = 1, operation, argument, bicubic
    height, width = image.shape[:2]
    px = min(height, width)
    made = np.empty_like(image)
    for top in {*range(0, height - px + 1, px), height - px}:
        for left in {*range(0, width - px + 1, px), width - px}:
            out = np.empty((3, px, px), dtype=np.uint8)
            row[: Column.WIDTH + 1] = top, left, px, px
            crop_strong(image, [StrongCrop(row, "bicubic", fill, out)])
            made[top : top + px, left : left + px] = out.transpose(1, 2, 0)
    return made


HANDLERS = {
    ("mugs", "augmentation_assembly"): check_augmentation_assembly,
    ("mugs", "randaugment_levels"): check_randaugment_levels,
    ("mugs", "randaugment_ops"): check_randaugment_ops,
}
