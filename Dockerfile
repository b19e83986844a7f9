# One image for everything of goalstate: publisher, agents, command line.
FROM python:3.11-slim-bookworm AS build

RUN python -m venv /opt/goalstate
WORKDIR /source
# What is installed from the lock file changes seldom, and so keeps its layer.
COPY requirements.lock ./
RUN /opt/goalstate/bin/pip install --no-cache-dir --disable-pip-version-check \
    --no-deps --require-hashes --requirement requirements.lock
COPY LICENSE pyproject.toml ./
COPY goalstate ./goalstate
RUN /opt/goalstate/bin/pip install --no-cache-dir --disable-pip-version-check \
    --no-deps --no-build-isolation .


FROM python:3.11-slim-bookworm

COPY --from=build /opt/goalstate /opt/goalstate
COPY deploy/health.py /opt/goalstate/health.py
# Where the agents of docker-compose.yml number themselves; a volume on it gets its owner from here.
# Likewise for the results of its load runs.
RUN install --directory --owner=10001 --group=10001 /slots /results
ENV PATH=/opt/goalstate/bin:$PATH PYTHONUNBUFFERED=1
# A number, so that Kubernetes and the like can see that it is not root.
USER 10001:10001
ENTRYPOINT ["goalstate"]
CMD ["--help"]
