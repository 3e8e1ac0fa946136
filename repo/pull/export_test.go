package pull

import "time"

// SetPublishInterval changes how often complete layers get names, for a test that
// does not run beside others, and returns how to change it back.
func SetPublishInterval(d time.Duration) (restore func()) {
	old := publishInterval
	publishInterval = d
	return func() { publishInterval = old }
}
