#!/bin/sh
# Runs inside User Mode Linux as root: partitions and formats /dev/ubda and installs the image in the OCI layout $LAYOUT on it.
# $MNT: empty directory; $PROGRAM: cfsboot; $TARGET: reference that the machine updates from; $KARGS: kernel arguments; $ESP_MIB
set -eu
step() { echo "install: $(cut -d' ' -f1 /proc/uptime) $*"; }
printf 'label: gpt\nsize=%sM, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=EFI-SYSTEM\ntype=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root\n' "$ESP_MIB" | sfdisk -q /dev/ubda
blockdev --rereadpt /dev/ubda || true
# Clusters of 2 KiB: with the default of 512 bytes the machine reads a table four times as long at each check of the file system.
mkfs.vfat -F 32 -s 4 -n ESP /dev/ubda1 >/dev/null
# 4 KiB blocks whatever the size of the disk: fs-verity with 4 KiB blocks needs them.
mkfs.ext4 -q -b 4096 -O verity -L root /dev/ubda2
mount /dev/ubda2 "$MNT"
mkdir "$MNT/boot"
mount /dev/ubda1 "$MNT/boot"
step "partitions are made and mounted"
set --
for k in $KARGS; do set -- "$@" --karg "$k"; done
"$PROGRAM" --progress plain install to-filesystem --image "oci:$LAYOUT:image" --target-image "$TARGET" "$@" "$MNT"
step "the image is installed"
umount "$MNT/boot"
umount "$MNT"
step "unmounted"
