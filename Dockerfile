# The dependencies come from requirements/*.txt, pinned with hashes; `make lock` pins them again.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements/ requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements/build.txt \
    && python -m venv /opt/magic-proxy \
    && /opt/magic-proxy/bin/pip install --require-hashes --only-binary=:all: -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY proxy/ proxy/
# pip is not needed where nothing is installed any more.
RUN /opt/build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/magic-proxy/bin/pip install --no-index --no-deps /dist/*.whl \
    && /opt/magic-proxy/bin/pip uninstall --yes pip setuptools


FROM python:${PYTHON_VERSION}-slim-bookworm
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="magic-proxy" \
      org.opencontainers.image.description="An OpenAI-compatible caching reverse proxy for LLM APIs." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# Numeric ids, so that an orchestrator can see that this is not root.
RUN groupadd --gid 10001 magic-proxy \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/magic-proxy \
        --shell /usr/sbin/nologin magic-proxy \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/magic-proxy
COPY --from=builder /opt/magic-proxy /opt/magic-proxy
COPY proxy_config.yaml /etc/magic-proxy/proxy_config.yaml
ENV PATH=/opt/magic-proxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/lib/magic-proxy
USER 10001:10001
# The only place that is written to, /tmp apart: the root may be read-only.
WORKDIR /var/lib/magic-proxy
VOLUME ["/var/lib/magic-proxy"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["magic-proxy"]
CMD ["serve", "--config", "/etc/magic-proxy/proxy_config.yaml", "--host", "0.0.0.0"]
