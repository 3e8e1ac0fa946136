package deploy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
)

// statusSchema checks documents against docs/schema/status-1.schema.json. It
// knows the part of JSON Schema that the file uses and fails on any other.
type statusSchema struct{ root map[string]any }

func loadSchema(t *testing.T) statusSchema {
	t.Helper()
	data, err := os.ReadFile("../docs/schema/status-1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var s statusSchema
	if err := json.Unmarshal(data, &s.root); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s statusSchema) check(t *testing.T, document []byte) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(document))
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if err := s.value("$", s.root, v); err != nil {
		t.Errorf("the document breaks its schema: %v", err)
	}
}

func (s statusSchema) value(at string, schema map[string]any, v any) error {
	for key := range schema {
		if !slices.Contains([]string{"$schema", "$id", "$defs", "$ref", "title", "description", "type", "properties", "required", "additionalProperties", "items", "enum", "const", "minimum", "minItems"}, key) {
			return fmt.Errorf("%s: the schema uses %q, which this test does not know", at, key)
		}
	}
	if ref, ok := schema["$ref"].(string); ok {
		name := strings.TrimPrefix(ref, "#/$defs/")
		def, ok := s.root["$defs"].(map[string]any)[name].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: no definition %s", at, ref)
		}
		return s.value(at, def, v)
	}
	if types, ok := schema["type"]; ok && !matchesType(types, v) {
		return fmt.Errorf("%s: %T, want %v", at, v, types)
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, v) {
		return fmt.Errorf("%s: %v, want one of %v", at, v, enum)
	}
	if c, ok := schema["const"]; ok && c != v {
		return fmt.Errorf("%s: %v, want %v", at, v, c)
	}
	if least, ok := schema["minimum"].(float64); ok && v != nil && v.(float64) < least {
		return fmt.Errorf("%s: %v, want at least %v", at, v, least)
	}
	switch v := v.(type) {
	case map[string]any:
		return s.object(at, schema, v)
	case []any:
		if least, ok := schema["minItems"].(float64); ok && float64(len(v)) < least {
			return fmt.Errorf("%s: %d items, want at least %v", at, len(v), least)
		}
		items, ok := schema["items"].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: the schema does not describe the items", at)
		}
		for i, item := range v {
			if err := s.value(fmt.Sprintf("%s[%d]", at, i), items, item); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s statusSchema) object(at string, schema, v map[string]any) error {
	properties, ok := schema["properties"].(map[string]any)
	if !ok || schema["additionalProperties"] != false {
		return fmt.Errorf("%s: the schema leaves the object open", at)
	}
	for _, name := range schema["required"].([]any) {
		if _, ok := v[name.(string)]; !ok {
			return fmt.Errorf("%s: no %q", at, name)
		}
	}
	for name, value := range v {
		property, ok := properties[name].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: %q is not in the schema", at, name)
		}
		if err := s.value(at+"."+name, property, value); err != nil {
			return err
		}
	}
	return nil
}

func matchesType(types, v any) bool {
	names, ok := types.([]any)
	if !ok {
		names = []any{types}
	}
	got := ""
	switch v := v.(type) {
	case nil:
		got = "null"
	case string:
		got = "string"
	case bool:
		got = "boolean"
	case map[string]any:
		got = "object"
	case []any:
		got = "array"
	case float64:
		got = "number"
		if v == float64(int64(v)) {
			got = "integer"
		}
	}
	return slices.Contains(names, any(got)) || got == "integer" && slices.Contains(names, any("number"))
}

// TestSchemaCatches: the checker is no rubber stamp.
func TestSchemaCatches(t *testing.T) {
	schema := loadSchema(t)
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
		if err := schema.value("$", schema.root, v); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
}
