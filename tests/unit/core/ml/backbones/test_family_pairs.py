"""Students and teachers of different families, sizes and normalisations, trained together."""

import math

import numpy as np
import pytest
import torch

from core.catalog.methods import AdapterKind, DistillationLoss
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.backbones.load import wrap_backbone
from core.ml.training.loop import train
from core.ml.training.resident import ResidentData, build_split

CLASSES, IMAGES = 3, 16
S, P = AdapterKind.SEQUENTIAL, AdapterKind.PARALLEL


def load(build_network, name, image_px=None):
    network = build_network(name)
    if image_px is not None:  # of a family that takes any size
        network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, image_px, image_px)}
    return wrap_backbone(network, f"tiny_{name}")


def build_data(student_px, teacher_px):
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES) % CLASSES
    student, teacher = (
        rng.integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
        for side in (student_px, teacher_px)
    )
    cpu = torch.device("cpu")
    return ResidentData(
        build_split(student, labels, device=cpu, teacher_images=teacher), None, None, "noise"
    )


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        (("convnext",), ("pvtv2", 96), P),
        (("pvtv2", 96), ("convnextv2",), S),
        (("swinv2",), ("dinov2_reg",), P),
        (("dinov3",), ("hiera",), S),
        (("hiera",), ("beit",), P),
        (("mvitv2_cls",), ("aimv2",), S),
        (("eva02",), ("siglip",), P),
        (("davit",), ("maxvit_nchw",), P),
        (("twins_svt",), ("deit_distilled",), S),
        (("naflex",), ("clip",), P),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_two_steps_move_every_tensor_of_both(build_network, tiny_plan, student, teacher, kind):
    pair = [load(build_network, *student), load(build_network, *teacher)]
    before = [compute_tensors_sha256(one.module.state_dict()) for one in pair]
    data = build_data(pair[0].image_px, pair[1].image_px)
    other = P if kind is S else S
    options = {
        "kind": kind,
        "teacher_adapter": AdapterSpec(other, 3, 0.5),
        "loss": DistillationLoss.MSE if kind is P else DistillationLoss.KL,
        "epochs": 1,
        "batch_size": IMAGES // 2,
        "weight_decay": 0.0,
        "drop_path": 0.1,
    }
    moved, still = (
        train(
            tiny_plan(**options, learning_rate=rate),
            data,
            student=pair[0],
            teacher=pair[1],
            device=torch.device("cpu"),
        )
        for rate in (1e-3, 0.0)
    )
    assert math.isfinite(moved.history[0].train_loss)
    assert moved.history[0].distillation > 0
    for role in ("student", "teacher"):
        start = getattr(still, role).state_dict()
        for name, tensor in getattr(moved, role).state_dict().items():
            assert (tensor != start[name]).any(), f"{role}: {name} did not learn"
    assert [compute_tensors_sha256(one.module.state_dict()) for one in pair] == before


def test_each_side_reads_its_own_size_and_statistics(build_network):
    pair = [load(build_network, "convnext"), load(build_network, "pvtv2", 96)]
    assert [one.image_px for one in pair] == [64, 96]
    siglip, dinov3, clip = (load(build_network, n) for n in ("siglip", "dinov3", "clip"))
    assert siglip.mean == siglip.std == (0.5, 0.5, 0.5)
    assert dinov3.mean == (0.485, 0.456, 0.406)
    assert clip.mean[0] == pytest.approx(0.48145466)
