"""What a job needs of memory: the formula against what torch keeps, and against sums by hand."""

import pytest

from benchmarks.training_memory import measure_saved_bytes
from core.catalog.backbones import get_backbone
from core.catalog.memory import (
    PROCESS_BYTES,
    Network,
    count_places,
    estimate_activation_bytes,
    estimate_memory,
)
from core.catalog.methods import AdapterKind

STUDENT, TEACHER = "vit_starter_student_patch8_64", "vit_starter_teacher_patch8_64"


@pytest.mark.parametrize("name", [STUDENT, TEACHER])
@pytest.mark.parametrize("kind", [AdapterKind.SEQUENTIAL, AdapterKind.LORA, AdapterKind.FULL])
def test_what_a_step_keeps_is_about_what_torch_counts(name: str, kind: AdapterKind) -> None:
    estimate = estimate_activation_bytes(get_backbone(name), kind, number_bytes=4)
    assert 1.0 <= estimate / measure_saved_bytes(name, kind, 8) <= 1.6


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        (STUDENT, 65, 65),
        ("vit_small_patch16_224.augreg_in21k", 197, 197),
        ("swin_tiny_patch4_window7_224.ms_in22k", 56 * 56, 7 * 7),
        ("convnext_atto.d2_in1k", 56 * 56, 7 * 7),
        ("vit_small_r26_s32_224.augreg_in21k", 50, 50),
    ],
)
def test_places_are_those_of_the_network(name: str, first: int, last: int) -> None:
    places = count_places(get_backbone(name))
    assert (places[0], places[-1]) == (first, last)
    assert len(places) == get_backbone(name).depth


def test_a_pair_is_the_sum_of_its_parts() -> None:
    student = Network(get_backbone(STUDENT), AdapterKind.SEQUENTIAL, trainable=1000)
    teacher = Network(get_backbone(TEACHER), AdapterKind.SEQUENTIAL, trainable=500)

    need = estimate_memory([student, teacher], number_bytes=2, batch_size=32, images=100)

    frozen = student.facts.parameters + teacher.facts.parameters
    assert (need.weights, need.trainable) == (2 * frozen, 16 * 1500)
    assert need.images == 100 * 64 * 64 * 3  # both see the same pixels
    assert need.total == PROCESS_BYTES + need.activations + 2 * frozen + 24_000 + 1_228_800


def test_a_batch_twice_as_large_keeps_twice_as_much_and_half_precision_half() -> None:
    network = Network(get_backbone(STUDENT), AdapterKind.PARALLEL, trainable=1)
    needs = [
        estimate_memory([network], number_bytes=number, batch_size=batch, images=0).activations
        for number, batch in ((4, 16), (4, 32), (2, 32))
    ]
    assert needs[1] == 2 * needs[0] == 2 * needs[2]


def test_without_adapters_only_the_work_under_way_counts() -> None:
    facts = get_backbone(STUDENT)
    assert estimate_activation_bytes(facts, AdapterKind.LINEAR_PROBE, number_bytes=4) == 0
