package main

import (
	"bytes"
	"io"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/cfsboot/cfsboot/deploy"
)

// statusResult is what `status` prints. Its JSON is bootc's v1 document, ours under one key.
type statusResult struct {
	deploy.Status
	verbose bool // kernel arguments too
}

func (r statusResult) table(p *page) {
	t := r.Table()
	for _, line := range t.Lines {
		p.line("%s", line)
	}
	p.columns(t.Rows...)
	if r.verbose {
		p.columns(t.Kargs...)
	}
	for _, problem := range t.Problems {
		p.line("problem: %s", problem)
	}
	for _, line := range t.Log {
		p.line("%s", line)
	}
}

func newStatusCommand(e *env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is booted, staged and kept, and what is wrong",
		Long: `Show what is booted, staged and kept. It needs no root and never fails: what it cannot read is listed
under problems, and a machine that cfsboot does not manage is said to be one. With --verbose it also
shows the kernel arguments of each deployment and where each comes from.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if e.opts.json && format != "" && format != "json" {
				return usageErrorf(cmd, "--json and --format %s exclude each other", format)
			}
			r := statusResult{deploy.ReadStatus(cmd.Context(), e.machine()), e.opts.verbose}
			switch {
			case format == "yaml":
				return printError(writeYAML(e.stdout, r))
			case format == "json":
				return printError(writeJSON(e.stdout, r))
			case format != "" && format != "table":
				return usageErrorf(cmd, "--format must be table, json or yaml, got %q", format)
			}
			return e.render(r)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "`FORMAT` of the output: table, json or yaml")
	return cmd
}

// writeYAML prints a value with the keys, and in the order, of its JSON.
func writeYAML(w io.Writer, v any) error {
	var text bytes.Buffer
	if err := writeJSON(&text, v); err != nil {
		return err
	}
	var node yaml.Node // JSON is YAML; a node keeps the order of keys
	if err := yaml.Unmarshal(text.Bytes(), &node); err != nil {
		return err
	}
	plainStyle(&node)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return err
	}
	return enc.Close()
}

// plainStyle drops JSON's braces and quotes; the encoder puts quotes back where YAML needs them.
func plainStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plainStyle(c)
	}
}
