// Package uki reads and builds unified kernel images (UKI, UAPI.5): PE files that
// hold a kernel, its initrd, its command line and what describes them in sections,
// behind the stub of systemd that starts them. The format and what is refused stand
// in docs/design/uki.md.
//
// Words: a section's content is what the stub reads of it, the first
// min(VirtualSize, SizeOfRawData) bytes of its data; a payload section is one that
// the stub reads (".linux", ".cmdline", …), the others belong to the stub itself; a
// profile is a choice in the boot menu, a set of payload sections.
//
// Parse and Inspect read files from anywhere: they check before they believe, read
// headers and short texts only, and hold no more than that. Every fault is a
// *FormatError. Build writes what ukify 257 writes for the same input, byte for
// byte, streaming the kernel and the initrd. It takes contents, not paths;
// BuildFile is for a file.
//
// The package does not sign and does not check signatures. A *PE may be used by
// several goroutines if its reader may.
package uki
