# kimagenet with DALI on NVIDIA GPUs. Checked with hadolint, but not built: the project's CI has no container engine.
#   docker build --tag kimagenet .
#   docker run --rm --gpus all --shm-size 2g kimagenet
#   docker run --rm --gpus all --shm-size 2g -v "$PWD:/data" kimagenet python -m kimagenet.train --output /data/run
FROM nvidia/cuda:12.6.3-base-ubuntu24.04

# g++ compiles DALI's TF plugin against this image's TensorFlow, and kimagenet's CPU operator on first use.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/kimagenet
COPY . .
# The `gpu` extra brings CUDA's libraries in the versions that this TensorFlow needs. The base image needs none.
# hadolint ignore=DL3013
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir uv \
    && .venv/bin/uv sync --no-cache --inexact --extra dali --extra gpu

ENV PATH=/opt/kimagenet/.venv/bin:$PATH
CMD ["python", "-m", "kimagenet.doctor"]
