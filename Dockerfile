# SPDX-License-Identifier: Apache-2.0
# A server without compiler, pip or torch. `make wheel` first, then
#   docker build -t linnet .
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./my-model:/model:ro -v ./api-key:/api-key:ro linnet
# The wheel and the image must be of one Python: --build-arg PYTHON=3.12 for another.
# /api-key holds one key of 8 characters or more: a server that more than this machine can reach asks for one.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-trixie AS install
COPY dist/*.whl /wheels/
RUN python -m venv --copies /opt/linnet \
    && /opt/linnet/bin/python -m pip install --no-cache-dir --disable-pip-version-check /wheels/*.whl \
    && /opt/linnet/bin/python -m pip uninstall --yes --disable-pip-version-check pip setuptools

FROM python:${PYTHON}-slim-trixie
RUN useradd --create-home --uid 10001 linnet
COPY --from=install /opt/linnet /opt/linnet
ENV PATH=/opt/linnet/bin:$PATH
USER 10001
WORKDIR /home/linnet
EXPOSE 8000
# A model of many gigabytes takes a while to be read the first time.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["linnet"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000", "--api-key-file", "/api-key"]
