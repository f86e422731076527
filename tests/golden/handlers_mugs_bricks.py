"""What Mugs is built of: a ViT and the relation block, heads, memory, LARS, checkpoints, evaluation."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mugs_cases import contrastive_spec, filled, group_spec, options, ours, theirs, vit_spec
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.data.batch import Batch
from belvedere.eval.features import feature
from belvedere.eval.knn import nearest, votes
from belvedere.methods.method import Clock
from belvedere.nn.granular import ContrastiveHead, GranularNetwork
from belvedere.nn.heads import WeightNormHead
from belvedere.nn.norm import commit_, globalize_
from belvedere.nn.spec import FeatureSpec
from belvedere.nn.vit import ViT
from belvedere.ops.memory import KeyQueue, Memory
from belvedere.optim.lars import LARS
from golden import compare, fill_, normal, stats

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]
AT = Clock(0, 1, 1, 1)


def _described(case: Case, name: str) -> Tensor:
    """An input that the case describes by seed and shape."""
    return normal(case["recipes"][name]["seed"], case["recipes"][name]["shape"])


def memory(keys: Tensor, answers: Tensor) -> Memory:
    """A memory with these contents, its pointer at 0."""
    made = Memory(*keys.shape, torch.Generator())
    made.queue_q.copy_(keys)
    made.queue_k.copy_(answers)
    return made


# Networks


def _network(case: Case, args: dict[str, Any]) -> GranularNetwork:
    """A ViT with its relation block and the case's weights; its head plays no part."""
    head = contrastive_spec({"hidden_dim": 1}, 1)
    network = GranularNetwork(ViT(vit_spec(args)), instance=head, local_group=head, group=None)
    own = {n: value for n, value in network.state_dict().items() if "_head." in n}
    fill_(network, {ours(f"backbone.{name}"): value for name, value in theirs(case).items()} | own)
    return network


def _relate(network: GranularNetwork, query: Tensor, found: Memory, count: int) -> Tensor:
    sequence = torch.cat([query.unsqueeze(1), found.neighbours(query, count)], 1)
    return network(sequence, part="relation")


def check_vit_forward(case: Case, arrays: Arrays) -> None:
    args, count = case["args"], case["args"]["mem_top_n"]
    network, images = _network(case, args).eval(), _described(case, "image")
    found = memory(_described(case, "queue_q"), _described(case, "queue_k"))
    with torch.no_grad():
        output, features = network.backbone(images, blocks=1), network(images, part="backbone")
        assert output.cls is not None
        assert output.regions is not None
        tokens = torch.cat([output.cls.unsqueeze(1), output.regions], 1)
        before_norm = torch.cat([output.blocks[0].cls.unsqueeze(1), output.blocks[0].tokens], 1)
        outputs = {
            "out_tokens_slice": tokens[:, ::12, ::8],
            "out_tokens_stats": stats(tokens, ddof=1),
            "out_cls": features["cls"],
            "out_local_group": _relate(network, features["query"], found, count),
            "out_local_group_no_memory": network(before_norm, part="relation"),
            "out_memory_query": features["query"],
            "out_neighbour_index_sorted": found.search(features["query"], count).sort(1).values,
            "out_mean_patch_tokens": features["patches"],
        }
    for name, expected in arrays.items():
        compare(case, name, outputs[name], expected)


def check_drop_path(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    network, images = _network(case, args).train(), _described(case, "image").requires_grad_()
    rates = [block.drop_path.rate for block in network.backbone.blocks]
    np.testing.assert_allclose(rates, args["block_rates"], rtol=1e-6)
    assert network.relation_blocks[0].drop_path.rate == args["relation_block_rate"]
    found = memory(_described(case, "queue_q"), _described(case, "queue_k"))
    drawn, seen = iter(arrays["in_uniform"]), []
    network.backbone.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with (
        patch.object(rng.Scope, "row_uniforms", lambda *_: next(drawn)[None]),
        rng.scope(0, 0, range(len(images))),
    ):
        features = network(images, part="backbone")
        related = _relate(network, features["query"], found, args["mem_top_n"])
    assert next(drawn, None) is None, "fewer draws than recorded"
    (features["cls"].square().sum() + related.square().sum()).backward()
    grad = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    outputs: dict[str, Any] = {
        "out_cls": features["cls"],
        "out_local_group": related,
        "out_tokens_stats": stats(torch.cat([seen[0].cls.unsqueeze(1), seen[0].regions], 1), ddof=1),
        "out_grad_image_slice": images.grad[:, :, ::8, ::8],
        "out_grad_norm_cls_token": grad["backbone.cls_token"].norm(),
        "out_grad_pos_embed_slice": grad["backbone.pos_embed"][0, ::12, ::8],
        "out_grad_norm_relation_qkv": grad["relation_blocks.0.attn.qkv.weight"].norm(),
        "out_grad_norm_block0_qkv": grad["backbone.blocks.0.attn.qkv.weight"].norm(),
    }
    for name, expected in arrays.items():
        if name.startswith("out_"):
            compare(case, name, outputs[name], expected)


def check_attention(case: Case, arrays: Arrays) -> None:
    network, images, count = _network(case, case["args"]).eval(), _described(case, "image"), case["args"]["n"]
    with torch.no_grad():
        attention = network.backbone.attention(images)
        blocks = network.backbone(images, blocks=count).blocks
        tokens = [network.backbone.norm(torch.cat([b.cls.unsqueeze(1), b.tokens], 1)) for b in blocks]
    outputs = {
        "out_cls_attention": attention[:, :, 0],
        "out_attention_slice": attention[:, :, ::16, ::16],
        "out_attention_stats": stats(attention, ddof=1),
        "out_attention_shape": np.array(attention.shape),
        "out_intermediate_cls": torch.stack([each[:, 0] for each in tokens]),
        "out_intermediate_patch_mean": torch.stack([each[:, 1:].mean(1) for each in tokens]),
        "out_intermediate_stats": np.stack([stats(each, ddof=1) for each in tokens]),
    }
    for name, expected in arrays.items():
        compare(case, name, outputs[name], expected)


def check_wrapper(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    run = {"local_group_queue_size": args["mem_K"], "local_group_knn_top_n": args["mem_top_n"]}
    method = filled(case, options(args, run | {"instance_queue_size": 1}), vit_spec(args)).eval()
    is_student = args["role"] == "student"
    large, small = ("global", "local") if is_student else ("target", "none")
    sizes = args["view_sizes"]
    views: dict[str, list[Tensor]] = {}
    for number, px in enumerate(sizes):
        views.setdefault(large if px == max(sizes) else small, []).append(_described(case, f"view{number}"))
    images = len(views[large][0])
    stacked = {role: torch.stack(each) for role, each in views.items()}
    batch = Batch(stacked, torch.arange(images), torch.zeros(images), range(images))
    network = method.student if is_student else method.teacher
    found = memory(_described(case, "queue_q"), _described(case, "queue_k"))
    with torch.no_grad():
        encoded = (
            method.encode_student(network, batch, AT) if is_student else method.encode_teacher(batch, AT)
        )
        related = method._related(network, encoded, found).flatten(0, 1)
        cls, query = (
            torch.cat([h.flatten(0, 1) for key, h in encoded.items() if key.startswith(name)])
            for name in ("cls", "query")
        )
        group = network.group_head(cls)
        outputs: dict[str, Any] = {
            "out_instance": network(cls, part="instance_head"),
            "out_local_group": network(related, part="local_group_head"),
            "out_group_slice": group[:, :: args["group_stride"]],
            "out_group_stats": stats(group, ddof=1),
            "out_memory_tokens": encoded["patches_0"].flatten(0, 1),
            "out_n_memory_calls": np.array(sum(key.startswith("query") for key in encoded)),
            "out_neighbour_index_sorted": found.search(query, args["mem_top_n"]).sort(1).values,
        }
    for name, expected in arrays.items():
        compare(case, name, outputs[name], expected)


# Heads


def _check_head(case: Case, arrays: Arrays, head: nn.Module) -> None:
    """Output and gradients of one pass in training."""
    fill_(head, _of_head(case))
    globalize_(head)
    head.train()
    x = torch.from_numpy(arrays["in_x"]).requires_grad_()
    y = head(x)
    (y * torch.from_numpy(arrays["in_cotangent"])).sum().backward()
    commit_(head)
    named = dict(head.named_parameters())
    gradients = [named[_of_mlp(head, name)].grad for name in case["args"]["param_order"]]
    norms = [-1.0 if gradient is None else float(gradient.norm()) for gradient in gradients]
    outputs: dict[str, Any] = {"out_y": y, "out_grad_x": x.grad, "out_param_grad_norms": np.array(norms)}
    for name in ("weight_g", "weight_v"):
        if (layer := named.get(f"last_layer.{name}")) is not None:
            outputs[f"out_grad_{name}"] = layer.grad
    outputs |= {f"out_bn.{name}": value for name, value in head.named_buffers()}
    for name, expected in arrays.items():
        if name.startswith("out_"):
            compare(case, name, outputs[_of_mlp(head, name)], expected)


def _of_mlp(head: nn.Module, name: str) -> str:
    """The group head's projector is called as in DINO's head, which it is."""
    return name.replace("projector.", "mlp.") if isinstance(head, WeightNormHead) else name


def _of_head(case: Case) -> dict[str, Tensor]:
    state = theirs(case)
    is_group = any(name.startswith("last_layer.") for name in state)
    return {n.replace("projector.", "mlp.") if is_group else n: value for n, value in state.items()}


def check_contrastive_head(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    assert not args["pred_bn"], "no published predictor has a BatchNorm"
    head = ContrastiveHead(args["in_dim"], contrastive_spec(args, args["out_dim"]))
    if args["return_target"]:
        head.predictor = None
    _check_head(case, arrays, head)


def check_group_head(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    sizes = {"bottleneck": args["bottleneck_dim"], "out": args["out_dim"], "batch_norm": args["use_bn"]}
    head = WeightNormHead(args["in_dim"], group_spec(args, **sizes))
    for name, trained in args["trainable_last_layer"].items():
        assert head.get_parameter(name).requires_grad == trained
    _check_head(case, arrays, head)


# Memory


def check_memory(case: Case, arrays: Arrays) -> None:
    """The third array is another memory's answers: all are written alike."""
    args = case["args"]
    first, values = (
        memory(torch.from_numpy(arrays["in_queue_q"]), torch.from_numpy(arrays[f"in_queue_{name}"]))
        for name in ("k", "v")
    )
    query = torch.from_numpy(arrays["in_query"])
    found: dict[str, list[Tensor]] = {}
    for call, (count, flags) in enumerate(zip(args["batch_per_call"], args["flags"], strict=True)):
        rows = torch.from_numpy(arrays["in_features"][call, :count])
        kept = None if flags is None else torch.tensor(flags)
        for each in (first, values):
            each.push_(rows, kept)
        now = {
            "returned_len_weak": torch.tensor(0) if kept is None else kept.sum(),
            "queue_ptr": first.queue_ptr[0],
            "queue_q_after_call": first.queue_q,
            "queue_k_after_call": first.queue_k,
            "neighbour_index": first.search(query, args["top_n"]),
        }
        for name, value in now.items():
            found.setdefault(f"out_{name}", []).append(value.clone())
    outputs = {name: torch.stack(each) for name, each in found.items()} | {
        "out_queue_v_final": values.queue_k,
        "out_neighbour_keys": first.neighbours(query, args["top_n"]),
        "out_neighbour_values": values.neighbours(query, args["top_n"]),
    }
    for name, expected in arrays.items():
        if name.startswith("out_"):
            compare(case, name, outputs[name], expected)


def check_memory_pointer(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    slots, random = (
        memory(*(torch.zeros(args["K"], 1) for _ in "qk")),
        np.random.RandomState(args["flag_seed"]),
    )
    found: dict[str, list[int]] = {"queue_ptr": [], "slots_ever_written": [], "enqueued": []}
    for _ in range(args["calls"]):
        weak = torch.from_numpy(random.rand(args["batch"]) <= args["weak_prob"])
        slots.push_(torch.ones(args["batch"], 1), weak)
        found["queue_ptr"].append(int(slots.queue_ptr))
        found["slots_ever_written"].append(int(slots.queue_k.sum()))
        found["enqueued"].append(int(weak.sum()))
    for name, values in found.items():
        compare(case, f"out_{name}", np.array(values), arrays[f"out_{name}"])


# Optimizer


def check_lars(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    named = {name: nn.Parameter(torch.from_numpy(arrays[f"in_{name}"])) for name in args["params"]}
    optimizer = LARS(
        [{"params": list(named.values())}],
        lr=args["lr"],
        momentum=args["momentum"],
        weight_decay=args["weight_decay"],
        trust=args["eta"],
    )
    found: dict[str, list[Tensor]] = {name: [] for name in named}
    for step in range(args["steps"]):
        for name, parameter in named.items():
            parameter.grad = torch.from_numpy(arrays[f"in_grad_{name}"][step].copy())
        optimizer.step()
        for name, parameter in named.items():
            found[name].append(parameter.detach().clone())
    for name, values in found.items():
        compare(case, f"out_param_{name}", torch.stack(values), arrays[f"out_param_{name}"])


# Checkpoints


def check_checkpoint_layout(case: Case, arrays: Arrays) -> None:
    """Names and shapes are the authors', but for a memory's third array, which nothing reads, and queues,
    whose keys are rows here and columns there."""
    args, layout = case["args"], case["args"]["layout"]
    run = args["run"]
    chosen = options(run, run)
    student, teacher = (
        GranularNetwork(
            ViT(vit_spec(args | run)),
            instance=chosen.instance.wanted,
            local_group=chosen.local_group.wanted,
            group=chosen.group.wanted,
        )
        for _ in range(2)
    )
    teacher.drop_predictors_()
    for network, name in ((student, "student"), (teacher, "teacher")):
        expected = {ours(key): tuple(shape) for key, shape in layout[name].items()}
        assert _shapes(network) == expected
    backbone = {ours(f"backbone.{key}"): tuple(shape) for key, shape in layout["backbone_only"].items()}
    assert {n: s for n, s in _shapes(student).items() if "_head." not in n} == backbone

    slots = memory(*(torch.zeros(5, student.backbone.width) for _ in "qk"))
    for name in ("student_mem", "teacher_mem"):
        stored = {key.removeprefix("block."): tuple(shape[1:]) for key, shape in layout[name].items()}
        assert stored.pop("queue_v") == stored["queue_k"]
        assert {key: shape[1:] for key, shape in _shapes(slots).items()} == stored
        assert layout[name]["block.queue_k"][0] == chosen.local_group.memory
    for name, section in (("instance-sup.", chosen.instance), ("local-group-sup.", chosen.local_group)):
        keys = KeyQueue(5, section.head.out, torch.Generator())
        assert set(_shapes(keys)) == set(layout[name])
        assert layout[name]["queue"] == [keys.queue.shape[1], section.queue]
    assert layout["group-sup."] == {"center": [1, chosen.group.head.out]}

    relation = _count(student.relation_blocks)
    whole = relation + _count(student.backbone)
    counts = [_count(student), _count(teacher), whole, whole - relation, relation]
    compare(case, "out_counts", np.array(counts), arrays["out_counts"])


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.state_dict().values())


# Evaluation


def check_knn(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    train, test = (torch.from_numpy(arrays[f"in_{part}_features"]) for part in ("train", "test"))
    labels, expected = torch.from_numpy(arrays["in_train_labels"]), torch.from_numpy(arrays["in_test_labels"])
    percents = np.zeros((len(args["nb_knn"]), len(args["temperatures"]), 2))
    for row, k in enumerate(args["nb_knn"]):
        found = nearest(test, train, k=k)
        for column, temperature in enumerate(args["temperatures"]):
            cast = votes(found, labels, num_classes=args["num_classes"], temperature=temperature)
            ranked = cast.argsort(dim=1, descending=True, stable=True)
            hits = (ranked == expected.unsqueeze(1)).cumsum(1)
            percents[row, column] = [100 * float(hits[:, n - 1].double().mean()) for n in (1, 5)]
    compare(case, "out_top1_top5", percents, arrays["out_top1_top5"])


def check_linear_features(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    vit = ViT(vit_spec(args))
    fill_(vit, {name.removeprefix("backbone."): value for name, value in theirs(case).items()})
    images = torch.from_numpy(arrays["in_image"])

    def of(source: str, blocks: int) -> Tensor:
        spec = FeatureSpec.model_validate(
            {"source": source, "blocks": blocks, "norm": "all", "interpolation": "bicubic"}
            | {"resize_px": args["img_size"], "crop_px": args["img_size"]}
        )
        return feature(vit.eval()(images, blocks=blocks), spec, vit.norm)

    with torch.no_grad():
        both = of("cls+mean", 1)
        cls, mean = both.chunk(2, dim=1)
        outputs = {
            "out_single_classifier_avgpool": torch.stack([cls, mean], dim=2).flatten(1),
            "out_multi_classifier_avgpool2": both,
            "out_four_blocks_cls": of("cls", 4),
        }
    for name, expected in arrays.items():
        if name.startswith("out_"):
            compare(case, name, outputs[name], expected)


HANDLERS = {
    ("mugs", "vit_forward"): check_vit_forward,
    ("mugs", "vit_drop_path"): check_drop_path,
    ("mugs", "vit_attention"): check_attention,
    ("mugs", "mugs_wrapper"): check_wrapper,
    ("mugs", "contrastive_head"): check_contrastive_head,
    ("mugs", "group_head"): check_group_head,
    ("mugs", "memory_queue"): check_memory,
    ("mugs", "memory_pointer_long"): check_memory_pointer,
    ("mugs", "lars_steps"): check_lars,
    ("mugs", "checkpoint_layout"): check_checkpoint_layout,
    ("mugs", "knn_eval"): check_knn,
    ("mugs", "linear_probe_features"): check_linear_features,
}
