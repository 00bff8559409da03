# The image of agent and planner. The build context is the directory that `python -m tests.bed.images context DIR`
# fills: this file, requirements.lock (from uv.lock, with hashes) and the project's own wheel.
#
# Dependencies and the project lie in layers of their own, so that a new version of the project is a small pull.
ARG BASE=python:3.11-slim

FROM ${BASE} AS dependencies
# pip's settings for the build only: an index of one's own, a CA that the machine trusts
ARG PIP_INDEX_URL
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/prewarm
COPY requirements.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/bin/pip --python /opt/prewarm/bin/python install \
    --no-deps --require-hashes --only-binary :all: --no-compile -r /tmp/requirements.lock
# What never runs: service models of AWS besides S3 and credentials, tests, type stubs, sources in C, other commands.
RUN cd /opt/prewarm/lib/python3*/site-packages \
    && find botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} + \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' \) -delete \
    && find /opt/prewarm/bin -type f ! -name 'python*' -delete \
    && echo /opt/app > app.pth \
    && /opt/prewarm/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash .

FROM dependencies AS app
COPY prewarm-*.whl /tmp/
RUN /opt/build/bin/pip --python /opt/prewarm/bin/python install \
    --no-deps --no-index --no-compile --target /opt/app /tmp/prewarm-*.whl \
    && /opt/prewarm/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/app

FROM ${BASE}
COPY --from=dependencies /opt/prewarm /opt/prewarm
COPY --from=app /opt/app /opt/app
ENV PATH=/opt/app/bin:/opt/prewarm/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["prewarm"]
