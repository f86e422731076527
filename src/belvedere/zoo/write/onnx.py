"""A backbone as an ONNX graph: images in, the card's feature out, and probabilities with a classifier.

`model.onnx` takes `images` [batch, 3, height, width], normalized, and gives `features` [batch, D] and perhaps
`probabilities` [batch, C]. Height and width are open for a ResNet, open in whole patches for a ViT, and the
card's for any other network, whose windows follow from them. How to prepare an image, and the class names,
stand in the graph's metadata.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from belvedere.core.errors import WeightsError
from belvedere.nn.spec import BackboneSpec, FeatureSpec, ResNetSpec, ViTSpec
from belvedere.zoo.cards import Card
from belvedere.zoo.write.agreement import ROUNDED
from belvedere.zoo.write.target import Outgoing, Side, Target, square

FILE_NAME = "model.onnx"
_OPSET = 18  # of late 2022: every runtime in use reads it
_LARGEST_FILE = 1_900_000_000  # bytes; a file of this format ends at 2 GiB, and what is more lies beside it
_LEAST_PX = 33  # a ResNet's last map has two cells from here on; one would be taken for a constant of the
# trace, while the graph's operations do not mind it
_BATCH = 2  # of the traced example; 1 would be taken for a constant


def _multiple_px(spec: BackboneSpec) -> int | None:
    """What open sides must be multiples of, or None where the size is fixed."""
    if isinstance(spec, ViTSpec) and spec.stem == "patch":
        return spec.patch_px
    return 1 if isinstance(spec, ResNetSpec) else None


def _write(folder: Path, outgoing: Outgoing) -> None:
    card, network = outgoing.card, outgoing.feature.float().cpu().eval()
    names = ["features", *(["probabilities"] if outgoing.classifier is not None else [])]
    with torch.no_grad(), _quiet():
        program: Any = torch.onnx.export(
            _traced(network, card),
            (),
            input_names=["images"],
            output_names=names,
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(_metadata(outgoing))
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    program.save(str(folder / FILE_NAME), external_data=num_bytes > _LARGEST_FILE)


def _traced(network: nn.Module, card: Card) -> ExportedProgram:
    """The network's operations, with the batch and, where it can be, the size left open."""
    px, multiple = card.features.crop_px, _multiple_px(card.backbone)
    sizes: dict[int, Any] = {0: Dim("batch", min=1)}
    height = width = px
    if multiple is not None:
        whole = multiple > 1
        names = ("rows", "columns") if whole else ("height", "width")
        rows, columns = (Dim(name, min=1 if whole else _LEAST_PX) for name in names)
        sizes |= {2: multiple * rows if whole else rows, 3: multiple * columns if whole else columns}
        height = max(px, 2 * multiple if whole else 2 * _LEAST_PX)
        width = height + multiple  # sides that agree would be taken for one
    images = torch.zeros(_BATCH, 3, height, width)
    network(images)  # what networks keep for a size is made now: nothing of it may come from the trace
    failed = None
    for strict in (False, True):
        try:
            return torch.export.export(network, (images,), dynamic_shapes=(sizes,), strict=strict)
        except Exception as error:  # torch gives many kinds; the last one is told
            failed = error
    raise WeightsError(
        f"torch.export cannot trace this network ({type(failed).__name__}); export it to another format"
    ) from failed


def _metadata(outgoing: Outgoing) -> dict[str, str]:
    card, features = outgoing.card, outgoing.card.features
    told: dict[str, Any] = {
        "system": card.system,
        "source": card.source,
        "licence": card.licence or "not stated",
        "mean": list(card.mean),
        "std": list(card.std),
        "resize_px": features.resize_px,
        "crop_px": features.crop_px,
        "interpolation": features.interpolation,
    }
    if outgoing.classifier is not None:
        told["classes"] = list(outgoing.classifier.classes)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}


def _read_back(folder: Path, outgoing: Outgoing) -> list[Side]:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(folder / FILE_NAME), options, providers=["CPUExecutionProvider"]
    )
    card, network = outgoing.card, outgoing.feature

    def side(what: str, place: int) -> Side:
        def ours(images: Tensor) -> Tensor:
            found = network(images)
            part: Tensor = found if isinstance(found, Tensor) else found[place]
            return part

        def theirs(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run([what], {"images": images.numpy()})[0])

        return Side(what, ours, theirs, sizes, ROUNDED, False)

    px, multiple = card.features.crop_px, _multiple_px(card.backbone)
    step = multiple if multiple is not None and multiple > 1 else 33
    sizes = (square(px), *([] if multiple is None else [(px + 2 * step, px + step)]))
    names = ["features", *(["probabilities"] if outgoing.classifier is not None else [])]
    return [side(name, place) for place, name in enumerate(names)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's remarks off the screen; its errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _refusal(card: Card) -> str:
    return ""


def _notes(outgoing: Outgoing) -> list[str]:
    multiple, px = _multiple_px(outgoing.card.backbone), outgoing.card.features.crop_px
    if multiple is None:
        why = "because this network's tables follow from the size"
        return [f"any batch; images of {px} x {px} px only, {why}"]
    patches = "" if multiple == 1 else f" in whole patches of {multiple} px"
    return [f"any batch, and images of any size{patches}"]


def _loading(outgoing: Outgoing) -> str:
    names = "features, probabilities" if outgoing.classifier is not None else "(features,)"
    return f"""\
import onnxruntime

session = onnxruntime.InferenceSession("DIR/{FILE_NAME}")
prepared = session.get_modelmeta().custom_metadata_map  # mean, std, resize_px, crop_px, ...
{names} = session.run(None, {{"images": images}})  # [batch, 3, height, width] float32, normalized
"""


def _classifier_feature(features: FeatureSpec) -> FeatureSpec:
    return features


TARGET = Target(
    name="onnx",
    library="onnxruntime",
    extra="onnx",
    packages=("onnx", "onnxscript", "onnxruntime"),
    refusal=_refusal,
    write=_write,
    read_back=_read_back,
    notes=_notes,
    loading=_loading,
    classifier_feature=_classifier_feature,
)
