#!/bin/sh
# Makes a chroot image for the scanner of a container image.
#
#     docker/make-chroot-image.sh [-s SIZE] [-f FREE] SOURCE OUTPUT
#
# SOURCE  name of a container image, or a file system that was exported from a container (.tar)
# OUTPUT  what to make, by its ending: .img, an ext3 file system; .zip, such an .img in an archive; .tar, the bare files
# -s      size of the file system [MiB]; by default as large as the files need, and FREE
# -f      space left free in it [MiB], 200 by default
#
# For .img and .zip it needs e2fsprogs (Debian and Ubuntu have it), but no mounting and no privileged container. As
# another user than root it needs fakeroot, so that the files keep their owners. DOCKER names another program than docker.
set -eu

PATH=${PATH:+$PATH:}/usr/sbin:/sbin
export PATH
docker=${DOCKER:-docker}
folder='' container='' size='' free=200

fail() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

clean_up() {
    [ -z "$container" ] || "$docker" rm "$container" >/dev/null
    [ -z "$folder" ] || rm -rf "$folder"
}

is_number() {
    case $1 in
        '' | *[!0-9]*) return 1 ;;
    esac
}

# File system $2 with the files of the archive $1, in the folder $3: unpacked and packed by one process, since
# fakeroot keeps owners only that long.
make_file_system() {
    mkdir "$3/root"
    tar -xpf "$1" -C "$3/root" --numeric-owner
    rm -f "$3/root/.dockerenv"
    for mount_point in dev proc sys tmp tmp/share; do
        mkdir -p "$3/root/$mount_point"
    done
    chmod 1777 "$3/root/tmp"
    # Blocks as they are on this disk; journal and tables add about a twentieth.
    used=$(du -sk "$3/root" | cut -f1)
    files=$(find "$3/root" | wc -l)
    mebibytes=${size:-$((used * 107 / 102400 + 40 + free))}
    [ "$mebibytes" -gt $((used / 1024)) ] || fail "$mebibytes MiB are too small: the files take $((used / 1024)) MiB"
    mke2fs -q -F -t ext3 -m 0 -N $((files * 2 + 1000)) -d "$3/root" "$2" "${mebibytes}M" ||
        fail "the files do not fit into $mebibytes MiB: try a larger size with -s"
    e2fsck -fn "$2" >/dev/null 2>&1 || fail "the file system that was made is not sound"
    echo "$mebibytes MiB, of which the files take $((used / 1024)) MiB"
}

if [ "${1:-}" = --make-file-system ]; then # called by itself, see below
    size=$5 free=$6
    make_file_system "$2" "$3" "$4"
    exit
fi

while getopts s:f: option; do
    case $option in
        s) size=$OPTARG ;;
        f) free=$OPTARG ;;
        *) fail "expected [-s SIZE] [-f FREE] SOURCE OUTPUT" 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 2 ] || fail "expected [-s SIZE] [-f FREE] SOURCE OUTPUT" 2
[ -z "$size" ] || is_number "$size" || fail "-s $size: expected a whole number of MiB" 2
is_number "$free" || fail "-f $free: expected a whole number of MiB" 2
source=$1 output=$2
case $output in
    *.img | *.zip | *.tar) ;;
    *) fail "$output: expected a name that ends in .img, .zip or .tar" 2 ;;
esac
case $output in
    */*) place=${output%/*} ;;
    *) place=. ;;
esac
[ -d "$place/" ] || fail "there is no folder $place" 2
needed=mke2fs
case $output in
    *.zip) needed="mke2fs zip" ;;
    *.tar) needed="" ;;
esac
for program in $needed; do
    command -v "$program" >/dev/null || fail "$program is needed and not installed (packages e2fsprogs, zip)"
done
as_root=""
if [ -n "$needed" ] && [ "$(id -u)" != 0 ]; then
    command -v fakeroot >/dev/null || fail "as another user than root this needs fakeroot, which is not installed"
    as_root=fakeroot
fi

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
folder=$(mktemp -d "$place/chroot.XXXXXX") # beside the output: it may be too large for /tmp

if [ -f "$source" ]; then
    archive=$source
else
    archive=$folder/exported.tar
    container=$("$docker" create "$source")
    "$docker" export -o "$archive" "$container"
fi

name=${output##*/}
case $output in
    *.tar) cp "$archive" "$folder/$name" ;;
    *) $as_root sh "$0" --make-file-system "$archive" "$folder/${name%.*}.img" "$folder" "$size" "$free" ;;
esac
case $output in
    *.zip) (cd "$folder" && zip -q "$name" "${name%.*}.img") ;;
esac
mv -f "$folder/$name" "$output"
echo "$output is made"
