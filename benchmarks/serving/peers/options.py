"""The command line that both peers take."""

import argparse
from dataclasses import dataclass

import torch

from benchmarks.serving.models import Stock
from benchmarks.serving.peers.network import DECODERS, STRATEGIES, AdaptedVit


@dataclass(frozen=True)
class PeerOptions:
    """How a peer runs.

    Attributes:
        stock: what it serves.
        models: how many of them.
        port: where it listens, on 127.0.0.1.
        strategy: see `benchmarks.serving.peers.network`.
        precision: `fp32` or `bf16`.
        decoder: whose preprocessing it uses.
        workers: processes or threads that run the network.
        threads: torch's threads of each.
        batch: largest batch.
        timeout_s: how long a batch waits to fill.
    """

    stock: Stock
    models: int
    port: int
    strategy: str
    precision: str
    decoder: str
    workers: int
    threads: int
    batch: int
    timeout_s: float

    def build(self) -> AdaptedVit:
        """Load the network and its adapters into this process, onto a GPU where there is one."""
        torch.set_num_threads(self.threads)
        return AdaptedVit(
            self.stock.network,
            self.stock.weights_dir,
            self.stock.bundle,
            self.models,
            strategy=self.strategy,
            dtype=torch.bfloat16 if self.precision == "bf16" else torch.float32,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        )


def read_options(description: str | None) -> PeerOptions:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--stock", required=True, type=Stock.from_json)
    parser.add_argument("--models", required=True, type=int)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--strategy", choices=STRATEGIES, default="grouping")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--decoder", choices=sorted(DECODERS), default="pillow")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--timeout-s", type=float, default=0.0)
    return PeerOptions(**vars(parser.parse_args()))
