"""LitServe, with its batching and workers.

The image comes as the body, not as base64 in JSON, by a dependency of FastAPI: the best case.
"""

from typing import Annotated, Any

import litserve as ls
import numpy as np
from fastapi import Depends, Request

from benchmarks.serving.peers.network import DECODERS, AdaptedVit, top_five
from benchmarks.serving.peers.options import PeerOptions, read_options


async def read_call(request: Request) -> tuple[int, bytes]:
    """Return the model's number and the encoded image of a request."""
    return int(request.headers["x-model"]), await request.body()


class Classify(ls.LitAPI):  # type: ignore[misc] # untyped
    """Decode, batch, forward, as LitServe's documentation shows it."""

    def __init__(self, options: PeerOptions) -> None:
        """Keep the options; the network is loaded in the worker."""
        super().__init__(max_batch_size=options.batch, batch_timeout=options.timeout_s)
        self._options = options
        self._network: AdaptedVit | None = None

    def setup(self, device: str) -> None:
        """Load the network in this worker."""
        del device
        self._network = self._options.build()

    def decode_request(
        self, request: Annotated[tuple[int, bytes], Depends(read_call)]
    ) -> tuple[int, Any]:
        """Return the model's number and the pixels."""
        model, data = request
        assert self._network is not None
        return model, DECODERS[self._options.decoder](data, self._network.image_px)

    def batch(self, inputs: list[tuple[int, Any]]) -> tuple[list[int], Any]:
        """Return the batch's models and pixels."""
        return [model for model, _ in inputs], np.stack([pixels for _, pixels in inputs])

    def predict(self, inputs: Any) -> Any:  # noqa: ANN401 - one input or a batch, by its setting
        """Run the network."""
        assert self._network is not None
        models, pixels = inputs
        if isinstance(models, int):
            return self._network.classify([models], pixels[None])[0]
        return self._network.classify(models, pixels)

    def unbatch(self, output: Any) -> list[Any]:  # noqa: ANN401
        """Return the rows of a batch."""
        return list(output)

    def encode_response(self, output: Any) -> list[dict[str, float | int]]:  # noqa: ANN401
        """Return the likeliest classes."""
        return top_five(output)


def main() -> None:
    """Serve until killed."""
    options = read_options(__doc__)
    server = ls.LitServer(
        Classify(options),
        accelerator="auto",
        workers_per_device=options.workers,
        timeout=False,
    )
    server.run(port=options.port, host="127.0.0.1", log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
