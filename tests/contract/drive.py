"""Small runs of any method through the real session, loader and loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from belvedere.methods.pages import method_names
from belvedere.nn.spec import ResNetSpec
from belvedere.recipe.load import load_recipe
from belvedere.recipe.schema import Recipe
from belvedere.train.dataset_pass import epoch_batches
from belvedere.train.loop import StepReport, steps
from belvedere.train.run import open_session
from belvedere.train.session import Session

SMALL = (
    "data.split=null",
    "data.max_bad_share=0.5",
    "train.global_batch=8",
    "train.epochs=3",
    "optim.lr.warmup_epochs=1",
    "run.workers=0",
    "run.device=cpu",
)

OWN: dict[str, tuple[str, ...]] = {
    # full after two of the second epoch's steps, so that it is used before, at and after an epoch's edge
    "swav": ("method.queue={length: 20, start_epoch: 0}", "method.freeze_prototypes_steps=2"),
    "esvit": ("method.teacher_temperature={start: 0.04, final: 0.07, warmup_epochs: 2}",),
    # stored to past their ends within the run
    "mugs": (
        "method.instance.queue=20",
        "method.local_group.queue=24",
        "method.local_group.memory=20",
        "method.local_group.neighbours=2",
        "method.group.teacher_temperature={start: 0.04, final: 0.07, warmup_epochs: 2}",
    ),
}
"""What brings a method's own state into so short a run."""

UNFROZEN: dict[str, tuple[str, ...]] = {
    "esvit": ("method.freeze_last_layer_epochs=0",),
    "mugs": ("method.group.freeze_last_layer_epochs=0",),
}
"""Without what keeps parameters from moving at first."""

NO_OWN_STATE: dict[str, tuple[str, ...]] = {"swav": ("method.queue=null",)}
"""Without what the paper defines for each process."""

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "esvit-resnet": (
        "esvit",
        (
            "backbone={name: resnet, block: basic, blocks: [1, 1, 1, 1], widen: 1, width_per_group: 8, "
            "stem: small}",
            "features.source=pooled",
            "features.norm=none",
            "views.global.px=16",  # of 8 px it leaves one region
            "views.local.px=12",
            "features.resize_px=16",
            "features.crop_px=16",
        ),
    ),
    "swav-swin": (
        "swav",
        (
            "backbone={name: swin, embed_width: 64, blocks: [2], heads: [4], patch_px: 4, window: 2, "
            "mlp_ratio: 4.0, image_px: 8, drop_path: 0.0}",
            "features.source=mean",
            "features.norm=last_stage",
            "views.local.px=8",  # of 6 px it has no whole patches
            "optim={name: adamw, betas: [0.9, 0.999], eps: 1e-8, lr: {start: 2e-4, peak: 3e-3, final: 1e-6, "
            "warmup_epochs: 2}, weight_decay: {start: 0.04, final: 0.04}, clip: {kind: total, norm: 3.0, "
            "from_epoch: 0}, stretch: 1.0}",
        ),
    ),
}
"""What signs the contract beside each method's tiny recipe: a method, and how its recipe is changed."""

EXACT = 2e-9
"""Rounding of a few float64 steps: parameters without exact gradient (biases before a BatchNorm) move by
lr * 1e-15 / Adam's epsilon. A wrong factor or a lost row moves parameters by 1e-4 and more."""

SIGNED = (*method_names(), *VARIANTS)


def base(method: str) -> str:
    """The method that `method`, one of `SIGNED`, is or is a variant of."""
    return VARIANTS[method][0] if method in VARIANTS else method


def changes(method: str) -> tuple[str, ...]:
    """How a variant's recipe differs from the method's tiny one."""
    return VARIANTS[method][1] if method in VARIANTS else ()


VIT = (
    "{name: vit, width: 16, depth: 2, heads: 2, patch_px: 2, mlp_ratio: 2.0, stem: patch, image_px: 8, "
    "drop_path: 0.2}"
)

WITHOUT_GRADIENT = (
    "projection_head.0.bias",  # SwAV's
    "projection_head.1.running_mean",
    "head.mlp.0.bias",  # EsViT's, one for each task
    "head.mlp.1.running_mean",
    "head.mlp.3.bias",
    "head.mlp.4.running_mean",
    "head_dense.mlp.0.bias",
    "head_dense.mlp.1.running_mean",
    "head_dense.mlp.3.bias",
    "head_dense.mlp.4.running_mean",
)
"""A bias in front of a BatchNorm has no gradient but rounding. LARC scales that to a step of full size, which
no output depends on; AdamW to one as small as rounding."""


def recipe(
    method: str,
    images: Path,
    directory: Path,
    overrides: Sequence[str] = (),
    *,
    drop_path: float = 0.2,
    vit: bool = False,
) -> Recipe:
    """The method's tiny recipe cut down to three epochs of three steps, with randomness on.

    drop_path: of a ViT. vit: whether to use one where the recipe has a backbone with BatchNorm.
    """
    tiny, own = f"tiny/{base(method)}", changes(method)
    lines = [
        *own,
        *SMALL,
        f"data.path={images}",
        f"run.dir={directory}",
        *OWN.get(base(method), ()),
        *overrides,
    ]
    if not isinstance(load_recipe(tiny, own).backbone, ResNetSpec):
        lines.append(f"backbone.drop_path={drop_path}")
    elif vit:
        lines.append(f"backbone={VIT}")
    latest = {key: value for key, _, value in (line.partition("=") for line in lines)}
    return load_recipe(tiny, [f"{key}={value}" for key, value in latest.items()])


def session(
    of: Recipe,
    *,
    resume: bool = False,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Session:
    """A run at its start, or where its newest checkpoint ends."""
    opened = open_session(of, device)
    if resume:
        assert opened.resume(), "there was nothing to resume"
    return opened


def drain(run: Session, *, until: int | None = None) -> list[StepReport]:
    """Train to the end, or until `until` steps are finished."""
    reports = []
    with run.loader() as loader:
        again = epoch_batches(run)
        for report in steps(
            run.method,
            run.optimizer,
            loader,
            run.plan,
            run.spread,
            start_step=run.step,
            epoch_batches=again,
        ):
            reports.append(report)
            run.step = report.at.step + 1
            run.replaced = dict(loader.replaced)
            if run.step == until:
                break
    return reports


def snapshot(run: Session) -> dict[str, Tensor]:
    """A copy of everything a checkpoint holds."""
    return {name: tensor.detach().clone() for name, tensor in run.tensors().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose tensors are not bitwise equal."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest absolute difference over all tensors but those of `WITHOUT_GRADIENT`."""
    assert a.keys() == b.keys()
    compared = [name for name in a if not any(part in name for part in WITHOUT_GRADIENT)]
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in compared)
