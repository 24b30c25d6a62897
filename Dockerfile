# A container that reads a folder of DICOM and writes one: see docs/how-to/archive.md.
#
#     docker build -t mcmiad .
#     docker run --rm --read-only --tmpfs /tmp --network none --user 1000:1000 \
#         -v "$PWD/my_model:/model:ro" -v "$PWD/in:/in:ro" -v "$PWD/out:/out" mcmiad dicom /in /out
#
# For CPUs. torch is the one of the package index, whose wheel for Linux also brings CUDA's
# libraries: an image of several gigabytes. The smaller wheels for CPUs alone are on an index of
# their own: pass it as TORCH_INDEX, and torch and torchvision are taken from there together.
FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/mcmiad
ENV PATH=/opt/mcmiad/bin:$PATH
WORKDIR /src
COPY . .
# versions are those that setup.cfg asks for
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" torch torchvision; fi \
    && pip install '.[dicom,export]'

FROM python:3.11-slim
LABEL org.opencontainers.image.title="mcmiad_monai" \
      org.opencontainers.image.description="Anomaly heatmaps of DICOM series. Research, not for diagnosis." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/mcmiad /opt/mcmiad
# what libraries write goes to /tmp, which may be the only place that can be written; any user may run it
ENV PATH=/opt/mcmiad/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCH_HOME=/tmp/torch \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LOGNAME=mcmiad \
    MCMIAD_BUNDLE=/model
WORKDIR /tmp
USER 65534:65534
ENTRYPOINT ["mcmiad"]
CMD ["dicom"]
