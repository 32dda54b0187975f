"""The benchmark of the training step runs and compares equal maths; its times are not tested."""

import argparse
import json

import pytest

from benchmarks.train_step import add_result, print_result, run


@pytest.fixture(scope="module")
def result():
    options = argparse.Namespace(
        pair="starter",
        batch_size=2,
        steps=1,
        rounds=1,
        images=3,
        hidden_dim=4,
        device="cpu",
        weights_dir=None,
    )
    return run(options)


class TestTrainStep:
    def test_fp32_gradients_are_those_of_the_released_step(self, result):
        figures = result["gradients"]["ours fp32"]
        assert figures["student relative error"] < 1e-5
        assert figures["teacher relative error"] < 1e-5

    def test_bf16_gradients_point_the_same_way(self, result):
        figures = result["gradients"]["ours bf16"]
        assert figures["student cosine"] > 0.99
        assert figures["teacher cosine"] > 0.99

    def test_times_every_variant(self, result):
        assert len(result["times"]) == 5
        assert result["times"]["released fp32"]["cpu_speedup"] == 1.0

    def test_prints_and_saves_beside_other_pairs(self, result, tmp_path, capsys):
        path = tmp_path / "results.json"
        path.write_text('{"other": {}}')
        add_result(path, result)
        assert set(json.loads(path.read_text())) == {"other", "starter"}
        print_result(result)
        assert "ours bf16" in capsys.readouterr().out
