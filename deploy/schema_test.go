package deploy_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/testutil/jsonschema"
)

func statusSchema(t *testing.T) jsonschema.Schema {
	t.Helper()
	return jsonschema.Load(t, "../docs/schema/status-1.schema.json")
}

// TestSchemaCatches: the checker is no rubber stamp.
func TestSchemaCatches(t *testing.T) {
	schema := statusSchema(t)
	m := newStatusMachine(t)
	statusCases["upgraded"](m)
	good := string(statusJSON(t, deploy.NewStatus(m.in)))
	for name, change := range map[string][2]string{
		"unknown field": {`"kind":`, `"kindly": 1, "kind":`},
		"missing field": {`"apiVersion": "org.containers.bootc/v1",`, ``},
		"wrong type":    {`"readOnly": true`, `"readOnly": "yes"`},
		"wrong enum":    {`"bootOrder": "default"`, `"bootOrder": "random"`},
		"wrong const":   {`"kind": "BootcHost"`, `"kind": "Host"`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%s: the change does not apply", name)
		}
		var v any
		if err := json.Unmarshal([]byte(bad), &v); err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
}
