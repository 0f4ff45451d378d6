# The command `aneurysm`, for clusters: docs/cluster.md. What is sent to the builder is listed in .dockerignore.
#   docker build --tag registry.example.org/aneurysm:0.1.0 .
#   docker build --build-arg EXTRAS=objects,cluster --tag ... .

# By the digest of the index for all architectures, as public builds have it; your registry's copy has the same.
ARG BASE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${BASE} AS build
ARG EXTRAS=""
COPY . /src
# An environment that is copied as a whole: of what builds the wheel nothing is left in the image.
RUN python -m venv /opt/aneurysm \
    && /opt/aneurysm/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src \
    && wheel="$(ls /wheels/aneurysm-*.whl)" \
    && /opt/aneurysm/bin/pip install --no-cache-dir "${wheel}${EXTRAS:+[$EXTRAS]}" \
    && /opt/aneurysm/bin/pip uninstall --yes pip setuptools \
    && /opt/aneurysm/bin/aneurysm precache --help > /dev/null

FROM ${BASE}
LABEL org.opencontainers.image.title="aneurysm" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/aneurysm /opt/aneurysm
# A user of its own; any other will do, for nothing is written but to the cache and to /tmp.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin aneurysm
ENV PATH=/opt/aneurysm/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["aneurysm"]
