package record_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"
)

func sum(body []byte) string {
	h := sha256.Sum256(body)
	return "sha256:" + hex.EncodeToString(h[:])
}

// seal wraps a record as a file with a right checksum.
func seal(t *testing.T, body any) []byte {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(`{"checksum":"` + sum(data) + `","record":` + string(data) + "}\n")
}
