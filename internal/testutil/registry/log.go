package registry

import (
	"io"
	"log"
)

// quiet drops what net/http prints about connections that tests break.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
