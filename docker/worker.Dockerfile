# The worker: validates datasets and trains jobs, on a CPU or a GPU.
# Build from the top folder: docker build -f docker/worker.Dockerfile -t idat-worker .
# torch's wheels bring CUDA; for a GPU the host needs its driver and the NVIDIA container toolkit.

# Down to the copied environment the same as inference.Dockerfile: the two share these layers.
FROM python:3.12-slim-bookworm AS build
COPY requirements/full.txt /requirements.txt
RUN python -m venv /opt/idat \
    && /opt/idat/bin/pip install --no-cache-dir --require-hashes -r /requirements.txt

FROM python:3.12-slim-bookworm
# One uid in all images: they share the store's volume.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/idat idat \
    && install -d -o idat -g idat /var/lib/idat /srv/idat/blobs /srv/idat/hub
COPY --from=build /opt/idat /opt/idat
WORKDIR /app
COPY core core
COPY migrations migrations
COPY worker worker
ENV PATH=/opt/idat/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/srv/idat/hub \
    IDAT_DATA_DIR=/var/lib/idat \
    IDAT_STORAGE_URL=file:///srv/idat/blobs
USER 10001:10001
# Asks the worker itself through the broker; without IDAT_BROKER_URL there is nobody to ask through.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "[ -z \"$IDAT_BROKER_URL\" ] || celery -A worker.app inspect ping --timeout 10 | grep -q \"@$(hostname)\""]
# Exec form: the worker itself is process 1, gets the SIGTERM and hands its job back.
CMD ["python", "-m", "worker"]
