"""FastAPI and timm, with the model in FastAPI's thread pool."""

import threading
from typing import Annotated

import anyio.to_thread
import uvicorn
from fastapi import Depends, FastAPI, Request

from benchmarks.serving.peers.network import DECODERS, AdaptedVit, top_five
from benchmarks.serving.peers.options import PeerOptions, read_options


async def read_body(request: Request) -> bytes:
    """Return the encoded image."""
    return await request.body()


def create_app(options: PeerOptions) -> FastAPI:
    """Build the application; each of its threads that run the network has one of its own."""
    app = FastAPI()
    networks = [options.build() for _ in range(options.workers)]
    idle = list(networks)
    lock = threading.Lock()
    free = threading.Semaphore(options.workers)

    def take() -> AdaptedVit:
        free.acquire()
        with lock:
            return idle.pop()

    def put_back(network: AdaptedVit) -> None:
        with lock:
            idle.append(network)
        free.release()

    @app.get("/health")
    async def health() -> str:
        anyio.to_thread.current_default_thread_limiter().total_tokens = max(8, options.workers)
        return "ok"

    @app.post("/classify/{model}")
    def classify(
        model: int, data: Annotated[bytes, Depends(read_body)]
    ) -> list[dict[str, float | int]]:
        pixels = DECODERS[options.decoder](data, networks[0].image_px)
        network = take()
        try:
            return top_five(network.classify([model], pixels[None])[0])
        finally:
            put_back(network)

    return app


def main() -> None:
    """Serve until killed."""
    options = read_options(__doc__)
    uvicorn.run(create_app(options), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
