"""The worker: claims rows, supervises the processes that work on them, publishes the results."""
