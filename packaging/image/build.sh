#!/bin/sh
# Turns a Debian root directory into an image-mode system: runs inside the image while it is built (see Containerfile).
# usage: build.sh VERSION
set -eux
version=$1
kver=$(ls /usr/lib/modules)

# What an image-mode system finds at run time: mount points, and links from the writable places into /var.
for d in boot efi sysroot proc sys dev run tmp var; do mkdir -p "/$d"; done
chmod 1777 /tmp
relink() { # relink NAME TARGET: what the directory holds moves to the target
	mkdir -p "/var/$2"
	if [ -d "/$1" ] && [ ! -L "/$1" ]; then cp -a "/$1/." "/var/$2/"; rm -rf "/${1:?}"; fi
}
relink root roothome && ln -s var/roothome /root
relink home home && ln -s var/home /home
relink opt opt && ln -s var/opt /opt
relink srv srv && ln -s var/srv /srv
relink mnt mnt && ln -s var/mnt /mnt
relink usr/local usrlocal && ln -s ../var/usrlocal /usr/local
rm -rf /media && ln -s run/media /media
mkdir -p /usr/lib/sysimage && mv /var/lib/dpkg /usr/lib/sysimage/dpkg && ln -s ../../usr/lib/sysimage/dpkg /var/lib/dpkg

# /etc: an empty machine-id is filled at the first boot; no line for the root, which the initramfs mounts.
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_* /etc/.pwd.lock /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow-
printf '# The root comes from the kernel command line (composefs.digest=), the boot partition from its GPT type.\n' >/etc/fstab
sed -i "s/^VERSION_ID=.*/VERSION_ID=\"$version\"/; s/^PRETTY_NAME=.*/PRETTY_NAME=\"cfsboot demo $version on Debian 13\"/" /usr/lib/os-release

systemctl preset systemd-networkd.service systemd-resolved.service cfsboot-finalize.service cfsboot-boot-review.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_reap.service systemd-networkd-wait-online.service
systemctl preset cfsboot-grow-root.service ssh.service sshd-keygen.service
systemctl mask systemd-boot-update.service
# It would offer logins over AF_VSOCK, and fails on machines without.
mkdir -p /etc/systemd/system-generators && ln -sf /dev/null /etc/systemd/system-generators/systemd-ssh-generator
# What these would make of /usr after an update is in the image; made on the machine it would be a local change in /etc that outlives its /usr.
for u in ldconfig systemd-hwdb-update systemd-journal-catalog-update; do rm -f "/usr/lib/systemd/system/sysinit.target.wants/$u.service"; done
ldconfig
journalctl --update-catalog

# No network, no device, no extended attributes of the build host in here.
DRACUT_NO_XATTR=1 dracut --kver "$kver" --force "/usr/lib/modules/$kver/initramfs.img"
rm -rf /boot/* /run/* /tmp/* /var/tmp/* /var/log/* /var/cache/*
