#!/bin/sh
# Builds an image of the server.
#
#     docker/build-image.sh [cpu|cuda|cuda11] [TAG]
#
# TAG is mrd-recon-server for cpu, mrd-recon-server-cuda and mrd-recon-server-cuda11 for the others, unless given. cuda11
# is for hosts whose driver takes CUDA 11.8 at most. DOCKER names another program than
# docker, such as podman.
set -eu

kind=${1:-cpu} cuda=12
case $kind in
    cpu) file=Dockerfile tag=mrd-recon-server ;;
    cuda) file=docker/cuda.dockerfile tag=mrd-recon-server-cuda ;;
    cuda11) file=docker/cuda.dockerfile tag=mrd-recon-server-cuda11 cuda=11 ;;
    *)
        echo "error: '$kind' is no kind of image; expected cpu, cuda or cuda11" >&2
        exit 2
        ;;
esac
cd "$(dirname -- "$0")/.."
case $file in
    Dockerfile) set -- "${2:-$tag}" ;;
    *) set -- "${2:-$tag}" --build-arg "CUDA=$cuda" ;;
esac
exec "${DOCKER:-docker}" build -t "$@" -f "$file" .
