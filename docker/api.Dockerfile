# The API in the control role: uploads, datasets, jobs, models. No torch, no ML code, a few dozen MB.
# Build from the top folder: docker build -f docker/api.Dockerfile -t idat-api .

FROM python:3.12-slim-bookworm AS build
COPY requirements/control.txt /requirements.txt
RUN python -m venv /opt/idat \
    && /opt/idat/bin/pip install --no-cache-dir --require-hashes -r /requirements.txt

FROM python:3.12-slim-bookworm
# One uid in all images: they share the store's volume.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/idat idat \
    && install -d -o idat -g idat /var/lib/idat /srv/idat/blobs
COPY --from=build /opt/idat /opt/idat
WORKDIR /app
COPY core/*.py core/
COPY core/catalog core/catalog
COPY core/platform core/platform
COPY migrations migrations
COPY api api
ENV PATH=/opt/idat/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    IDAT_HOST=0.0.0.0 \
    IDAT_PORT=8000 \
    IDAT_ROLES=control \
    IDAT_DATA_DIR=/var/lib/idat \
    IDAT_STORAGE_URL=file:///srv/idat/blobs
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# Exec form: the server itself is process 1 and gets the SIGTERM.
CMD ["python", "-m", "api"]
