// Package direct holds tests that boot the lab's operating system without firmware and boot loader: QEMU gets kernel,
// initramfs and command line from the host, so that everything after them is under test, on a disk that was attacked
// before.
package direct
