# An image of the service: docs/service.md. CPU by default; for CUDA
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t nvpstore .
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=service,otel,labels
WORKDIR /source
RUN python -m venv /opt/nvpstore
COPY constraints.txt pyproject.toml README.md LICENSE ./
# nvpstore/adapters, nvpstore/catalog and nvpstore/api are links to these.
COPY adapters ./adapters
COPY api ./api
COPY catalog ./catalog
COPY nvpstore ./nvpstore
# PyTorch's own index has a build of the pinned version with a local suffix, which pip prefers to PyPI's.
RUN /opt/nvpstore/bin/python -m pip install --no-cache-dir -c constraints.txt --extra-index-url "${TORCH_INDEX}" ".[${EXTRAS}]"

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="nvpstore" \
      org.opencontainers.image.description="Videos stored as neural networks, questioned with SQL" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 nvp \
    && useradd --uid 10001 --gid nvp --no-log-init --no-create-home --home-dir /tmp nvp \
    && install --directory --owner nvp --group nvp --mode 0700 /var/lib/nvpstore /var/cache/nvpstore
COPY --from=build /opt/nvpstore /opt/nvpstore
ENV PATH=/opt/nvpstore/bin:$PATH \
    NVP_STATE=/var/lib/nvpstore \
    NVP_CACHE=/var/cache/nvpstore \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME ["/var/lib/nvpstore", "/var/cache/nvpstore"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["nvp"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
