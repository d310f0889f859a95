#!/bin/sh
# Builds an image of the server.
#
#     docker/build-image.sh [cpu|cuda] [TAG]
#
# TAG is mrd-recon-server for cpu and mrd-recon-server-cuda for cuda, unless given. DOCKER names another program than
# docker, such as podman.
set -eu

kind=${1:-cpu}
case $kind in
    cpu) file=Dockerfile tag=mrd-recon-server ;;
    cuda) file=docker/cuda.dockerfile tag=mrd-recon-server-cuda ;;
    *)
        echo "error: '$kind' is no kind of image; expected cpu or cuda" >&2
        exit 2
        ;;
esac
cd "$(dirname -- "$0")/.."
exec "${DOCKER:-docker}" build -t "${2:-$tag}" -f "$file" .
