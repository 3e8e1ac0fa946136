// Package jsonschema checks documents against the schemas in docs/schema. It knows the part of JSON Schema that those use and
// fails on any other, and on an object that is open: a field that is printed must be described.
package jsonschema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// Schema is one file of docs/schema.
type Schema struct{ root map[string]any }

// Load reads a schema.
func Load(t testing.TB, path string) Schema {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s Schema
	if err := json.Unmarshal(data, &s.root); err != nil {
		t.Fatal(err)
	}
	return s
}

// Check fails the test if the document breaks the schema.
func (s Schema) Check(t testing.TB, document []byte) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(document))
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("the document breaks its schema: %v\n%s", err, document)
	}
}

// Validate returns what breaks the schema in a decoded document, or nil.
func (s Schema) Validate(v any) error { return s.value("$", s.root, v) }

func (s Schema) value(at string, schema map[string]any, v any) error {
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

func (s Schema) object(at string, schema, v map[string]any) error {
	if values, ok := schema["additionalProperties"].(map[string]any); ok && schema["properties"] == nil { // a map
		for name, value := range v {
			if err := s.value(at+"."+name, values, value); err != nil {
				return err
			}
		}
		return nil
	}
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
