package pull

import "time"

// SetMaxMetadata changes the limit for the entries of an image, likewise.
func SetMaxMetadata(n int64) (restore func()) {
	old := maxMetadata
	maxMetadata = n
	return func() { maxMetadata = old }
}

// SetPublishInterval changes how often complete layers get names, for a test that
// does not run beside others, and returns how to change it back.
func SetPublishInterval(d time.Duration) (restore func()) {
	old := publishInterval
	publishInterval = d
	return func() { publishInterval = old }
}

// SetReclaimWait changes how long a pull waits for others to close the repository,
// likewise.
func SetReclaimWait(d time.Duration) (restore func()) {
	old := reclaimWait
	reclaimWait = d
	return func() { reclaimWait = old }
}
