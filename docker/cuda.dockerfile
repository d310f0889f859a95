# The server for NVIDIA GPUs: CuPy and BART with CUDA. Built from the project's folder: docker/build-image.sh cuda, or
# cuda11 for hosts whose driver takes CUDA 11.8 at most, as of some scanners.
#
# No CUDA base image is needed: CuPy's wheels and Debian's packages bring the libraries, the host's driver the rest.
FROM python:3.12-slim-bookworm

# 12 or 11: docker/requirements-cuda12.txt or docker/requirements-cuda11.txt.
ARG CUDA=12

# BART with CUDA is in contrib, the CUDA libraries that it needs in non-free. It takes the place of the package bart.
# Debian 12 has CUDA 11.8, which is also what CuPy for CUDA 11 takes; the wheels of newer ones bring their own.
# hadolint ignore=DL3008,SC2086
RUN case $CUDA in \
        11) libraries="libcublas11 libcufft10 libcurand10 libcusolver11 libcusparse11 \
            libnvrtc11.2 libnvrtc-builtins11.8" ;; \
        12) libraries="" ;; \
        *) echo "error: CUDA is '$CUDA'; expected 11 or 12" >&2; exit 1 ;; \
    esac \
    && sed -i 's/^Components: main$/Components: main contrib non-free/' /etc/apt/sources.list.d/debian.sources \
    && apt-get update \
    && apt-get install -y --no-install-recommends bart-cuda $libraries \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/code/python-ismrmrd-server
COPY requirements.txt ./
COPY docker/requirements-cuda12.txt docker/requirements-cuda11.txt docker/
RUN pip install --no-cache-dir -r "docker/requirements-cuda$CUDA.txt"
COPY . .

RUN useradd --create-home --uid 1000 mrd && install -d -o mrd -g mrd /tmp/share \
    && install -d -o mrd -g mrd -m 750 /tmp/share/saved_data
USER 1000

# The container runtime gives the container what is asked for here.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

EXPOSE 9002
CMD ["python3", "main.py", "-v", "-H", "0.0.0.0", "-p", "9002", "-d", "invertcontrast"]
