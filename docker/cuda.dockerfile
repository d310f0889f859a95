# The server for NVIDIA GPUs: CuPy and BART with CUDA. Built from the project's folder: docker/build-image.sh cuda
#
# No CUDA base image is needed: CuPy's wheels and Debian's packages bring the libraries, the host's driver the rest.
FROM python:3.12-slim-bookworm

# BART with CUDA is in contrib, the CUDA libraries that it needs in non-free. It takes the place of the package bart.
# hadolint ignore=DL3008
RUN sed -i 's/^Components: main$/Components: main contrib non-free/' /etc/apt/sources.list.d/debian.sources \
    && apt-get update \
    && apt-get install -y --no-install-recommends bart-cuda \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/code/python-ismrmrd-server
COPY requirements.txt ./
COPY docker/requirements-cuda.txt docker/
RUN pip install --no-cache-dir -r docker/requirements-cuda.txt
COPY . .

RUN useradd --create-home --uid 1000 mrd && install -d -o mrd -g mrd /tmp/share \
    && install -d -o mrd -g mrd -m 750 /tmp/share/saved_data
USER 1000

# The container runtime gives the container what is asked for here.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

EXPOSE 9002
CMD ["python3", "main.py", "-v", "-H", "0.0.0.0", "-p", "9002", "-d", "invertcontrast"]
