package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// choose offers what an argument can be, as "value\tdescription".
type choose func(ctx context.Context) []string

// completeArgs tells the shell what the arguments of commands are; nil stands for a file or directory. What is not listed takes no
// argument that a shell could know.
func (e *env) completeArgs() map[string][]choose {
	return map[string][]choose{
		"cfsboot rollback":              {e.deployments},
		"cfsboot delete":                {e.deployments},
		"cfsboot install to-filesystem": {nil},
		"cfsboot install to-disk":       {nil},
		"cfsboot initramfs":             {nil},
		"cfsboot uki inspect":           {nil},
		"cfsboot oci inspect":           {e.tags},
		"cfsboot oci mount":             {e.tags, nil},
	}
}

// completeFlags are the values of flags that have a few.
var completeFlags = map[string][]string{
	"format":   {"table", "json", "yaml"},
	"progress": {"auto", "tty", "plain", "json", "none"},
}

// addCompletions gives every command and every flag its completion.
func addCompletions(root *cobra.Command, e *env) {
	args := e.completeArgs()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if list := args[c.CommandPath()]; !c.HasSubCommands() {
			c.ValidArgsFunction = func(c *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
				switch {
				case len(given) >= len(list):
					return nil, cobra.ShellCompDirectiveNoFileComp
				case list[len(given)] == nil:
					return nil, cobra.ShellCompDirectiveDefault
				}
				return list[len(given)](c.Context()), cobra.ShellCompDirectiveNoFileComp
			}
		}
		flags := func(f *pflag.Flag) {
			values := completeFlags[f.Name]
			name, _ := pflag.UnquoteUsage(f)
			if values == nil && (name == "" || slices.Contains([]string{"FILE", "PATH", "DIR", "SOURCE"}, name)) {
				return // a file, which is what shells offer, or no value
			}
			_ = c.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // fails for a second time only
		}
		c.LocalNonPersistentFlags().VisitAll(flags)
		c.PersistentFlags().VisitAll(flags)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// deployments offers the ids of the machine's deployments.
func (e *env) deployments(ctx context.Context) []string {
	var out []string
	for _, d := range deploy.ReadStatus(ctx, e.machine()).Cfsboot.Deployments {
		out = append(out, short(d.ID)+"\t"+description(strings.Join(d.Roles, ","), d.Title))
	}
	return out
}

// tags offers the names of the repository's images. Without a repository there are none.
func (e *env) tags(ctx context.Context) []string {
	var out []string
	_ = e.withRepo(ctx, func(r *repo.Repository) error {
		list, _, err := oci.Images(ctx, r)
		for _, s := range list {
			out = append(out, s.Name+"\t"+description(s.Architecture, s.Version))
		}
		return err
	})
	return out
}

// description is text of an image made fit for a terminal.
func description(parts ...string) string {
	return progress.Printable(strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", "))
}
