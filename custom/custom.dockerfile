# A custom module on top of the server's image. Built from this folder:
#
#     docker build --no-cache -t fire-python-custom -f custom.dockerfile ./
#
# BASE is the server's image: docker/build-image.sh makes mrd-recon-server, docker/build-image.sh cuda
# mrd-recon-server-cuda.
ARG BASE=mrd-recon-server
FROM ${BASE}

COPY filter.py filter.json /opt/code/python-ismrmrd-server/

# Further packages that a module needs:
#
#     USER root
#     RUN pip install --no-cache-dir PACKAGE==VERSION
#     USER 1000

CMD ["python3", "main.py", "-v", "-H", "0.0.0.0", "-p", "9002", "-d", "filter"]
