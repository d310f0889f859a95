# The server in a slim image for the CPU, with BART. docker/build-image.sh builds it; doc/containers.md tells more.
FROM python:3.12-slim-bookworm

# Debian keeps one version of a package in a release: a pinned one would be gone with the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bart \
    && rm -rf /var/lib/apt/lists/*

# This folder is where the start scripts, and scanners, look for the code.
WORKDIR /opt/code/python-ismrmrd-server
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .

# In a container the server runs as a user without rights. A scanner's chroot takes only the files, and runs as root.
RUN useradd --create-home --uid 1000 mrd && install -d -o mrd -g mrd /tmp/share \
    && install -d -o mrd -g mrd -m 750 /tmp/share/saved_data
USER 1000

EXPOSE 9002
CMD ["python3", "main.py", "-v", "-H", "0.0.0.0", "-p", "9002", "-d", "invertcontrast"]
