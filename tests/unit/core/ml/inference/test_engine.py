import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from core.catalog.methods import AdapterKind
from core.errors import InvalidError
from core.ml.adapters.adapted import AdapterStateError
from core.ml.backbones.load import WeightsMismatchError
from core.ml.backbones.packed_linear import _works
from core.ml.export.certificate import CertificateError
from core.ml.inference import host as host_module
from core.ml.inference.bank import Bank
from core.ml.inference.banked import choose_bucket

K = AdapterKind


def agree(output, made, pixels):
    logits, features = made.answer(pixels)
    return np.allclose(output.logits, logits, atol=1e-4) and np.allclose(
        output.features, features, atol=1e-4
    )


class TestResidents:
    def test_what_a_resident_says(self, build_engine, make_model):
        made = make_model(kind=K.PARALLEL, hidden_dim=5, classes=20)
        resident = build_engine().admit(made.bundle)
        assert resident.key == (made.bundle.sha256, made.bundle.config_sha256)
        assert (resident.backbone, resident.image_px) == ("tiny_vit", 32)
        assert (resident.classes, resident.num_features) == (made.bundle.classes, 24)
        # Three blocks of h = 8, each tensor a multiple of 32 numbers; a head of 128 classes.
        assert resident.size_bytes == 4 * (3 * (192 + 32 + 192 + 32) + 128 * 24 + 128)

    @pytest.mark.parametrize(
        ("hidden_dim", "bucket"),
        [(0, 0), (1, 8), (8, 8), (9, 16), (17, 64), (64, 64), (65, 128), (129, 256), (256, 256)],
    )
    def test_buckets(self, hidden_dim, bucket):
        assert choose_bucket(hidden_dim) == bucket

    def test_models_of_other_kinds_and_sizes_are_not_mixed(self, build_engine, make_model):
        engine = build_engine()
        residents = [
            engine.admit(make_model(kind=kind, hidden_dim=hidden_dim).bundle)
            for kind, hidden_dim in ((K.PARALLEL, 4), (K.SEQUENTIAL, 4), (K.PARALLEL, 12))
        ]
        assert len({resident.batch_key for resident in residents}) == 3
        with pytest.raises(InvalidError, match="batch keys"):
            engine.forward(residents[:2], [np.zeros((32, 32, 3), np.uint8)] * 2)

    def test_kinds_without_a_bank_take_turns(self, build_engine, make_model, draw_pixels):
        engine, pixels = build_engine(), draw_pixels(1)[0]
        made = [make_model(kind=kind) for kind in (K.FULL, K.SEQUENTIAL, K.VPT_DEEP, K.FULL)]
        residents = [engine.admit(each.bundle) for each in made]
        assert len({resident.batch_key for resident in residents}) == 4
        for _ in range(2):
            for each, resident in zip(made, residents, strict=True):
                assert agree(engine.forward([resident], [pixels])[0], each, pixels)

    def test_eviction_frees_and_forward_refuses(self, build_engine, make_model, draw_pixels):
        engine, pixels = build_engine(), draw_pixels(1)[0]
        for kind in (K.PARALLEL, K.FULL):
            made, other = make_model(kind=kind), make_model(kind=kind)
            resident = engine.admit(made.bundle)
            engine.evict(resident)
            engine.evict(resident)
            with pytest.raises(InvalidError, match="not resident") as caught:
                engine.forward([resident], [pixels])
            assert caught.value.code == "not_resident"
            second = engine.admit(other.bundle)
            assert agree(engine.forward([second], [pixels])[0], other, pixels)
            assert agree(engine.forward([engine.admit(made.bundle)], [pixels])[0], made, pixels)


class TestBase:
    def test_features_of_the_bare_backbone(self, build_engine, make_model, draw_pixels):
        engine, pixels = build_engine(), draw_pixels(2)
        probe = make_model(kind=K.LINEAR_PROBE)
        base, resident = engine.base("tiny_vit"), engine.admit(probe.bundle)
        assert (base.classes, base.size_bytes) == ((), 0)
        assert base.batch_key == resident.batch_key
        bare, headed = engine.forward([base, resident], pixels)
        assert bare.logits.shape == (0,)
        assert np.allclose(bare.features, probe.answer(pixels[0])[1], atol=1e-4)
        assert agree(headed, probe, pixels[1])
        engine.evict(base)
        assert engine.forward([base], pixels[:1])


@pytest.mark.skipif(not _works(torch.float32), reason="this torch cannot pack weights here")
@pytest.mark.parametrize(
    ("family", "weights"),
    [
        ("vit", ("blocks.0.attn.qkv.weight", "blocks.2.attn.qkv.weight")),  # the last is trimmed
        ("swinv2", ("layers.0.blocks.0.mlp.fc1.weight", "layers.0.blocks.0.attn.qkv.weight")),
    ],
)
def test_packed_weights_are_freed_but_for_those_that_are_read(
    build_engine, tiny_backbone, draw_pixels, family, weights
):
    backbone, (freed, kept) = tiny_backbone(family), weights
    engine = build_engine(load=lambda _: backbone)
    (output,) = engine.forward([engine.base(f"tiny_{family}")], draw_pixels(1))
    assert backbone.module.get_parameter(freed).isnan().all()
    assert backbone.module.get_parameter(kept).isfinite().all()
    assert np.isfinite(output.features).all()


class TestPixels:
    def test_normalised_ones_may_be_mixed_with_bytes(self, build_engine, make_model, draw_pixels):
        engine, made = build_engine(), make_model()
        resident = engine.admit(made.bundle)
        raw = draw_pixels(3)
        mean, std = (np.array(x, np.float32) for x in ((0.5, 0.5, 0.5), (0.5, 0.4, 0.3)))
        ready = [((x / np.float32(255) - mean) / std).transpose(2, 0, 1) for x in raw]
        for pixels in ([raw[0], ready[1], raw[2]], ready):
            outputs = engine.forward([resident] * 3, pixels)
            assert all(agree(o, made, x) for o, x in zip(outputs, raw, strict=True))

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((16, 16, 3), np.uint8),
            np.zeros((3, 32, 32), np.uint8),
            np.zeros((32, 32, 3), np.float32),
            np.zeros((3, 32, 32), np.float64),
        ],
    )
    def test_others_are_refused_by_number(self, build_engine, make_model, draw_pixels, image):
        engine = build_engine()
        resident = engine.admit(make_model().bundle)
        with pytest.raises(InvalidError, match=r"image 1 is .*, not uint8"):
            engine.forward([resident] * 2, [*draw_pixels(1), image])

    @pytest.mark.parametrize(("models", "images"), [(0, 0), (1, 2), (5, 5)])
    def test_batches_have_a_size(self, build_engine, make_model, draw_pixels, models, images):
        engine = build_engine(max_batch=4)
        resident = engine.admit(make_model().bundle)
        with pytest.raises(InvalidError, match="1 to 4 images"):
            engine.forward([resident] * models, draw_pixels(images))


class TestRefusals:
    def test_other_weights(self, build_engine, make_model):
        bundle = make_model().bundle
        other = dataclasses.replace(bundle.backbone, weights_sha256="f" * 64)
        with pytest.raises(WeightsMismatchError, match="trained on tiny_vit with weights ffffff"):
            build_engine().admit(dataclasses.replace(bundle, backbone=other))

    @pytest.mark.parametrize("kind", [K.SEQUENTIAL, K.FULL])
    def test_a_model_that_answers_otherwise_leaves_nothing(self, build_engine, make_model, kind):
        engine, made = build_engine(), make_model(kind=kind, strength=0.3)
        engine.evict(engine.admit(made.bundle))
        state = {name: 1.5 * tensor for name, tensor in made.bundle.state.items()}
        reserved = engine.bank_bytes("tiny_vit")
        for _ in range(40):
            with pytest.raises(CertificateError, match="does not answer here as it did"):
                engine.admit(dataclasses.replace(made.bundle, state=state))
        assert engine.bank_bytes("tiny_vit") == reserved

    def test_a_model_without_a_certificate_is_admitted(self, build_engine, make_model):
        bundle = dataclasses.replace(make_model().bundle, certificate=None)
        assert build_engine().admit(bundle).key[0] == bundle.sha256

    def test_tensors_that_do_not_fit_the_network(self, build_engine, make_model):
        bundle = make_model(kind=K.SSF).bundle
        state = dict(bundle.state)
        name = next(iter(state))
        state[name] = state[name][:-1]
        with pytest.raises(AdapterStateError, match=name.replace(".", r"\.")):
            build_engine().admit(dataclasses.replace(bundle, state=state))

    def test_a_failed_load_is_tried_again(self, build_engine, tiny_backbone, make_model):
        attempts = []

        def load(_):
            attempts.append(1)
            if len(attempts) == 1:
                raise InvalidError("not yet")
            return tiny_backbone()

        engine = build_engine(load=load)
        with pytest.raises(InvalidError, match="not yet"):
            engine.prepare("tiny_vit")
        assert engine.list_backbones() == []
        assert engine.admit(make_model().bundle)


class WrongBank(Bank):
    """A bank that gives every image the adapters of the first."""

    def run(self, slots, images):
        return super().run([slots[0]] * len(slots), images)


class TestSelfCheck:
    def test_a_bank_that_is_wrong_is_not_used(
        self, build_engine, make_model, draw_pixels, monkeypatch, caplog
    ):
        engine, pixels = build_engine(), draw_pixels(1)[0]
        engine.prepare("tiny_vit")
        monkeypatch.setattr(host_module, "Bank", WrongBank)
        made = [make_model(), make_model()]
        residents = [engine.admit(each.bundle) for each in made]
        assert "sequential in tiny_vit is served one model at a time" in caplog.text
        assert residents[0].batch_key != residents[1].batch_key
        for each, resident in zip(made, residents, strict=True):
            assert agree(engine.forward([resident], [pixels])[0], each, pixels)


class TestThreads:
    def test_models_come_and_go_beside_batches(self, build_engine, make_model, draw_pixels):
        loads = []
        lock = threading.Lock()
        inner = build_engine()._load

        def load(name):
            with lock:
                loads.append(name)
            return inner(name)

        engine, pixels = build_engine(load=load), draw_pixels(4)
        made = [make_model(hidden_dim=1 + i % 8) for i in range(6)]
        barrier = threading.Barrier(4)

        def churn(first):
            barrier.wait(timeout=60)
            for turn in range(8):
                each = made[(first + turn) % 6]
                engine.evict(engine.admit(each.bundle))

        def ask(first):
            barrier.wait(timeout=60)
            chosen = [made[(first + i) % 6] for i in range(4)]
            residents = [engine.admit(each.bundle) for each in chosen]
            for _ in range(12):
                outputs = engine.forward(residents, pixels)
                assert all(
                    agree(output, each, image)
                    for output, each, image in zip(outputs, chosen, pixels, strict=True)
                )

        # One thread asks: `answer` runs the models' own backbone, which is one for all.
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(churn, i) for i in range(3)] + [pool.submit(ask, 1)]
            for each in waiting:
                each.result(timeout=120)
        assert loads == ["tiny_vit"]
