# Two stages: the first has a compiler and makes a virtual environment, the second only runs it.
# docs/install/docker.md says how to use the image; tests/test_image.py runs what the stages run. The digest is that of the
# list of all architectures; requirements/ holds every package with its hashes, so that a build installs what was tried.
FROM python:3.12-slim-bookworm@sha256:34386ef0cb081344d7ec1c103ba398e6e9f64e9ab3a1509accc92a4e24a07258 AS build
# Debian keeps one version of a package at a time: pinning one would break the build with the next.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY requirements requirements
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.txt
# meinheld builds without its own greenlet only; the edge worker, the default, does not need it.
RUN MEINHELD_NOGREEN=1 /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --wheel-dir /opt/wheels \
    --require-hashes --requirement requirements/image.txt
COPY setup.py setup.cfg pyproject.toml MANIFEST.in README.md LICENSE ./
COPY fairvisor fairvisor
RUN FAIRVISOR_COMPILE=1 /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /opt/wheels .
RUN python -m venv /opt/fairvisor \
    && /opt/fairvisor/bin/pip install --no-cache-dir --no-index --no-deps /opt/wheels/*.whl \
    && /opt/fairvisor/bin/pip check

FROM python:3.12-slim-bookworm@sha256:34386ef0cb081344d7ec1c103ba398e6e9f64e9ab3a1509accc92a4e24a07258
RUN useradd --system --uid 10001 --home-dir /var/lib/fairvisor --create-home --shell /usr/sbin/nologin fairvisor \
    && install -d -o fairvisor -g fairvisor -m 0700 /var/lib/fairvisor
COPY --from=build /opt/fairvisor /opt/fairvisor
ENV PATH=/opt/fairvisor/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    FAIRVISOR_BIND=0.0.0.0:8080 \
    FAIRVISOR_CONFIG_FILE=/etc/fairvisor/policy.json \
    FAIRVISOR_STATE_DIR=/var/lib/fairvisor
USER 10001
WORKDIR /var/lib/fairvisor
# Snapshots and the last good bundle: mount a volume to keep counters over a new container.
VOLUME ["/var/lib/fairvisor"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/livez', timeout=2)"]
ENTRYPOINT ["fairvisor"]
CMD ["serve"]
