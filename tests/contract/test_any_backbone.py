"""SwAV's family trains every backbone: four steps through the real loop, and what is exported loads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drive import drain, recipe, session

from belvedere.train.export import export_backbone
from belvedere.zoo.load import load

COMMON = "widths: [4, 8, 12, 16], heads: [1, 2, 3, 4], blocks: [1, 1, 1, 1], mlp_ratio: 2.0, drop_path: 0.1"
BACKBONES = {
    "swin": "{name: swin, embed_width: 8, blocks: [1, 2], heads: [2, 4], patch_px: 4, window: 2, "
    "mlp_ratio: 2.0, image_px: 32, drop_path: 0.1}",
    "cvt": f"{{name: cvt, {COMMON}, kernels: [7, 3, 3, 3], strides: [4, 2, 2, 2], paddings: [2, 1, 1, 1], "
    "window: 7}",
    "vil": f"{{name: vil, {COMMON}, patches: [4, 2, 2, 2], sparse: [true, true, false, false], "
    "class_token: [true, true, true, false], window: 4, mode: 1, image_px: 32}",
}
FEW = (
    "views.global.px=32",
    "views.local.px=32",
    "features.resize_px=32",
    "features.crop_px=32",
    "features.source=mean",
    "features.norm=last_stage",
)


@pytest.mark.parametrize("backbone", list(BACKBONES))
@pytest.mark.parametrize("method", ["swav", "deepcluster", "sela"])
def test_steps_and_an_export(method: str, backbone: str, images: Path, tmp_path: Path) -> None:
    run = session(recipe(method, images, tmp_path, [*FEW, f"backbone={BACKBONES[backbone]}"], drop_path=0.1))
    reports = drain(run, until=4)  # into the second epoch, past what is frozen at first
    assert all(report.losses.total.isfinite() for report in reports)
    norms = dict(zip(reports[0].names, reports[0].norms, strict=True))
    # ViL's class token ends with each stage, and a single cell has nobody to attend to.
    without = [name for name, norm in norms.items() if not norm > 0 and "relative_position_bias" not in name]
    assert without == [], "no gradient reached these parameters"
    export_backbone(run)
    loaded, _ = load(tmp_path)
    trained = run.method.export().backbone.state_dict()
    assert list(loaded.state_dict()) == list(trained)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained[name]), name
