#!/bin/bash
# dracut module: assemble the composefs root with cfsboot. Opt-in: dracutmodules+=" cfsboot ".
# The units lie in /usr/lib/cfsboot/initramfs, the policy, if there is one, in /usr/lib/cfsboot/initramfs.toml.

check() {
    require_binaries /usr/lib/cfsboot/cfsboot-setup-root || return 1
    return 255
}

depends() {
    # systemd-emergency: without emergency.service, emergency.target cannot be started.
    echo systemd-initrd systemd-emergency
}

installkernel() {
    # Also for an image that is built on another machine than it runs on.
    hostonly='' instmods erofs overlay ext4
    # A failed boot may have to tell the loader what to start instead.
    hostonly='' instmods efivarfs
}

install() {
    local unit from=/usr/lib/cfsboot/initramfs

    inst_simple /usr/lib/cfsboot/cfsboot-setup-root
    inst_multiple -o /usr/lib/cfsboot/initramfs.toml /usr/lib/composefs/setup-root-conf.toml modprobe sulogin
    for unit in cfsboot-setup-root.service cfsboot-boot-check.service cfsboot-boot-failed.service; do
        inst_simple "$from/$unit" "$systemdsystemunitdir/$unit"
    done
    for unit in emergency.service emergency.target initrd-root-fs.target initrd-switch-root.service; do
        inst_simple "$from/$unit.conf" "$systemdsystemunitdir/$unit.d/10-cfsboot.conf"
    done
    inst_simple "$from/watchdog.conf" /usr/lib/systemd/system.conf.d/10-cfsboot-watchdog.conf
    # Required, not wanted: the machine must not go on without it.
    mkdir -p "$initdir$systemdsystemunitdir/initrd-root-fs.target.requires"
    ln -sf ../cfsboot-setup-root.service "$initdir$systemdsystemunitdir/initrd-root-fs.target.requires/cfsboot-setup-root.service"
    mkdir -p "$initdir$systemdsystemunitdir/initrd.target.wants"
    ln -sf ../cfsboot-boot-check.service "$initdir$systemdsystemunitdir/initrd.target.wants/cfsboot-boot-check.service"
}
