#!/bin/sh
# Leaves out what the lab's machines start without need; see Containerfile.
set -eu
cd /etc/systemd
mkdir -p system-generators
for g in hibernate-resume rc-local system-update sysv tpm2; do ln -s /dev/null "system-generators/systemd-$g-generator"; done
cd system
# It makes keys at the first boot and takes seconds at each: the machine that is logged in to over the network asks for it
# with a kernel argument.
rm multi-user.target.wants/ssh.service
for u in \
	systemd-resolved.service systemd-networkd-persistent-storage.service systemd-logind.service systemd-boot-random-seed.service getty@tty1.service \
	dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
	proc-sys-fs-binfmt_misc.automount; do
	ln -sf /dev/null "$u"
done
# A login starts no manager of the user's units.
sed -i '/pam_systemd/d' /etc/pam.d/*
