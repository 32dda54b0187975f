import torch
from torch import nn

from core.ml.training.optim import build_optimizer, set_learning_rate
from core.ml.training.seeds import build_generator, derive_seed


class TestOptimizer:
    def test_vectors_and_biases_do_not_decay(self):
        parameters = {
            "adapters.0.down.weight": nn.Parameter(torch.ones(2, 3)),
            "adapters.0.down.bias": nn.Parameter(torch.ones(2)),
            "head.weight": nn.Parameter(torch.ones(4, 3)),
            "head.bias": nn.Parameter(torch.ones(4)),
            "scale": nn.Parameter(torch.ones(3)),
        }
        other = {"head.weight": nn.Parameter(torch.ones(4, 2))}
        optimizer = build_optimizer([parameters, other], weight_decay=0.5)
        decayed, plain = optimizer.param_groups
        assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
        names = {id(p): n for n, p in parameters.items()}
        assert [names.get(id(p), "other") for p in decayed["params"]] == [
            "adapters.0.down.weight",
            "head.weight",
            "other",
        ]
        assert len(plain["params"]) == 3
        assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.999), 1e-8)

    def test_learning_rate_of_every_group(self):
        weight = {"w": nn.Parameter(torch.ones(2, 2)), "b": nn.Parameter(torch.ones(2))}
        optimizer = build_optimizer([weight], weight_decay=0.1)
        set_learning_rate(optimizer, 0.25)
        assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]

    def test_a_step_is_adamw_by_hand(self):
        weight = nn.Parameter(torch.full((1, 1), 2.0))
        optimizer = build_optimizer([{"w": weight}], weight_decay=0.1)
        set_learning_rate(optimizer, 0.01)
        weight.grad = torch.full((1, 1), 3.0)
        optimizer.step()
        wanted = 2.0 * (1 - 0.01 * 0.1) - 0.01 * 3.0 / (3.0 + 1e-8)
        assert abs(weight.item() - wanted) < 1e-6


class TestSeeds:
    def test_every_address_has_its_own_numbers(self):
        addresses = [
            (seed, purpose, epoch, step)
            for seed in (0, 1)
            for purpose in ("order", "drop_path/student", "drop_path/teacher")
            for epoch in (0, 1)
            for step in (0, 1, 2)
        ]
        seeds = {derive_seed(s, p, epoch=e, step=i) for s, p, e, i in addresses}
        assert len(seeds) == len(addresses)
        assert all(0 <= seed < 2**63 for seed in seeds)

    def test_same_address_same_numbers(self):
        first, second = (
            torch.rand(5, generator=build_generator(3, "order", epoch=2)) for _ in range(2)
        )
        assert torch.equal(first, second)
