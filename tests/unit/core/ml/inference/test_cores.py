"""Batches in parts: the same answers, in their order, whatever the number of threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.inference.cores import Cores


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def double(slots, images):
    assert len(slots) == len(images)
    return images * torch.tensor(slots)[:, None]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_parts_come_back_in_order(count, threads):
    images = torch.arange(count * 2.0).view(count, 2)
    slots = list(range(count))
    assert torch.equal(Cores(threads).run(double, slots, images), double(slots, images))


def test_each_part_has_a_core_and_the_others_keep_theirs(three_threads):
    seen = []

    def look(_slots, images):
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        return images

    Cores(3).run(look, [0] * 6, torch.zeros(6, 1))
    assert len(seen) == 3
    assert {(threads, grad) for _, threads, grad in seen} == {(1, False)}
    assert threading.get_ident() not in {ident for ident, _, _ in seen}
    assert torch.get_num_threads() == 3
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_batch_that_is_given_cores_stays_whole_and_in_its_thread(three_threads, cores):
    seen = []

    def look(slots, images):
        seen.append((threading.get_ident(), torch.get_num_threads(), slots))
        return images

    def ask():
        Cores(3).run(look, [0] * 6, torch.zeros(6, 1), cores)
        asked.append(threading.get_ident())

    asked = []
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert seen == [(asked[0], cores, [0] * 6)]


def test_what_breaks_in_a_part_comes_out_and_the_next_batch_runs():
    cores = Cores(2)

    def fail_at_last(slots, images):
        if 3 in slots:
            raise RuntimeError("the last part")
        return images

    with pytest.raises(RuntimeError, match="the last part"):
        cores.run(fail_at_last, [0, 1, 2, 3], torch.zeros(4, 1))
    assert torch.equal(cores.run(double, [1, 2], torch.ones(2, 1)), torch.tensor([[1.0], [2.0]]))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_mixed_batch_in_parts_answers_as_each_model_does(
    make_model, build_engine, three_threads, family
):
    kinds = [AdapterKind.SEQUENTIAL] * 5 + [AdapterKind.FULL]
    made = [make_model(family, kind, classes=3 + index) for index, kind in enumerate(kinds)]
    engine = build_engine()
    residents = [engine.admit(one.bundle) for one in made]
    px = residents[0].image_px
    draws = np.random.default_rng(0)
    pixels = [draws.integers(0, 256, (px, px, 3), dtype=np.uint8) for _ in range(11)]
    for models in ([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 4], [2] * 11, [5] * 4, [1]):
        batch = pixels[: len(models)]
        outputs = engine.forward([residents[model] for model in models], batch)
        for model, image, output in zip(models, batch, outputs, strict=True):
            logits, features = made[model].answer(image)
            np.testing.assert_allclose(output.logits, logits, atol=1e-4)
            np.testing.assert_allclose(output.features, features, atol=1e-4)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_batches_side_by_side_answer_as_each_model_does(
    make_model, build_engine, three_threads, family
):
    kinds = [AdapterKind.SEQUENTIAL, AdapterKind.SEQUENTIAL, AdapterKind.LORA, AdapterKind.FULL]
    made = [make_model(family, kind, classes=3 + index) for index, kind in enumerate(kinds)]
    engine = build_engine()
    assert engine.cores == 3
    residents = [engine.admit(one.bundle) for one in made]
    px = residents[0].image_px
    pixels = np.random.default_rng(0).integers(0, 256, (4, px, px, 3), dtype=np.uint8)
    # Of one bank, of another one, and of a model without: side by side where that is possible.
    mixes = [[0, 1, 0, 1], [1, 0, 0, 1], [2, 2, 2, 2], [3, 3, 3, 3]]
    begin = threading.Barrier(len(mixes))

    def ask(mix):
        begin.wait(30)
        return [
            engine.forward([residents[model] for model in mix], list(pixels), cores)
            for cores in (1, 2, None, 1, 1, 2)
        ]

    with ThreadPoolExecutor(len(mixes)) as pool:
        answers = list(pool.map(ask, mixes))
    for mix, rounds in zip(mixes, answers, strict=True):
        wanted = [made[model].answer(image) for model, image in zip(mix, pixels, strict=True)]
        for outputs in rounds:
            for output, (logits, features) in zip(outputs, wanted, strict=True):
                np.testing.assert_allclose(output.logits, logits, atol=1e-4)
                np.testing.assert_allclose(output.features, features, atol=1e-4)
