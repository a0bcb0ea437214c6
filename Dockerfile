# The command line in an image; `docker-compose.yml` uses it to migrate.
# Two stages, so that neither pip's leavings nor the sources end up in what runs.
FROM python:3.13-slim AS build
COPY . /src
RUN python3 -m venv /opt/solti-store \
    && /opt/solti-store/bin/pip install --no-cache-dir "/src[cli,binary]"

FROM python:3.13-slim
COPY --from=build /opt/solti-store /opt/solti-store
ENV PATH="/opt/solti-store/bin:$PATH"
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
ENTRYPOINT ["solti-store"]
