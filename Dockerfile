# One image for every processor and graphics card:
#   docker build -t sightline .                             x86-64: OpenVINO; others: CPU
#   docker build -t sightline:gpu --build-arg RUNTIME=gpu . NVIDIA, driver 580 or later
#
# CUDA and cuDNN come as pinned Python packages with the extra `gpu`, so the base is the same slim
# one: an nvidia/cuda base would carry them a second time. The driver's own libraries are mounted
# by NVIDIA's container toolkit.
#
# No apt-get anywhere: every wheel brings its libraries (docs/docker.md says how that was checked).
ARG BASE_IMAGE=python:3.11.14-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG RUNTIME=auto
ENV PIP_NO_CACHE_DIR=1
WORKDIR /build
# Only what decides the environment: a change of source does not install it again.
COPY pyproject.toml constraints.txt ./
COPY tools/setup_environment.py tools/
# Serving needs neither pip nor sympy, which a runtime package names for tools of its own.
RUN python tools/setup_environment.py --venv /opt/sightline --runtime "${RUNTIME}" --extras "store mqtt" \
    && /opt/sightline/bin/python -m pip uninstall --yes --quiet mpmath pip setuptools sympy

FROM ${BASE_IMAGE}
RUN groupadd --gid 10001 sightline \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin sightline \
    && install --directory --owner=10001 --group=10001 /var/lib/sightline
COPY --from=build /opt/sightline /opt/sightline
WORKDIR /app
COPY LICENSE pyproject.toml ./
COPY server server
COPY tools tools
COPY web web
COPY models models
RUN python -m compileall -q server tools

# The media ports are fixed, so that they can be published; compose.yaml names the same range.
ENV PATH=/opt/sightline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    SIGHTLINE_HOST=0.0.0.0 \
    SIGHTLINE_PORT=8080 \
    SIGHTLINE_PORT_RANGE=50000-50100 \
    SIGHTLINE_CACHE_DIR=/var/lib/sightline \
    SIGHTLINE_STATE_DIR=/var/lib/sightline
VOLUME /var/lib/sightline
EXPOSE 8080/tcp 50000-50100/udp
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-m", "server.healthcheck"]
ENTRYPOINT ["python", "-m", "server"]
