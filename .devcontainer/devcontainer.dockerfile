# What people need who work on the server: Python, BART, the programs that the tests compare with, the pinned packages.
FROM python:3.12-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bart chromium dcmtk dicom3tools ismrmrd-tools \
    && rm -rf /var/lib/apt/lists/*

COPY requirements.txt requirements-test.txt /tmp/
RUN pip install --no-cache-dir -r /tmp/requirements-test.txt \
    && useradd --create-home --uid 1000 --shell /bin/bash mrd
USER 1000
