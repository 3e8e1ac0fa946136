package mnt

// ParseRecord shows what is taken from a record of /dev/kmsg.
var ParseRecord = parseRecord

// Escape shows how a path is written in a "lowerdir" string.
func Escape(path string) string { return escape(path, `\:`) }

// ExplainEROFS shows how the kernel's refusal of an image is explained.
var ExplainEROFS = explainEROFS
