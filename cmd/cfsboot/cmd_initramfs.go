package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/systemd"
)

// initramfsResult is what `initramfs` prints.
type initramfsResult struct {
	Schema string `json:"schema"` // cfsboot.initramfs/1
	Output string `json:"output"`
	systemd.InitrdResult
}

func (r initramfsResult) table(p *page) {
	switch {
	case !r.Changed:
		p.line("%s has the hook already", r.Output)
	case len(r.Modules) > 0:
		p.line("%s: hook added, with kernel modules %s", r.Output, strings.Join(r.Modules, ", "))
	default:
		p.line("%s: hook added", r.Output)
	}
}

func newInitramfsCommand(e *env) *cobra.Command {
	var output, program, config, modules string
	cmd := &cobra.Command{
		Use:   "initramfs INITRD",
		Short: "Add the hook that mounts a composefs root to an existing systemd-based initrd",
		Long: `Add the hook that mounts a composefs root to an existing initrd. The initrd must be run by systemd,
as dracut makes it. Repeated, nothing changes: configuration and modules that were added before stay
unless others are named. In an image that builds its initrd with dracut, the
dracut module 37cfsboot does the same at build time.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" {
				output = args[0]
			}
			if _, err := os.Stat(args[0]); err != nil { // before the program, which nobody has named
				return err
			}
			opts := systemd.InitrdOptions{Modules: modules}
			var err error
			if opts.Program, err = os.ReadFile(program); err != nil {
				return fmt.Errorf("the initramfs program: %w; name it with --program", err)
			}
			if config != "" {
				if opts.Config, err = os.ReadFile(config); err != nil {
					return err
				}
			}
			r, err := systemd.AppendInitrdFile(cmd.Context(), args[0], output, opts)
			if err != nil {
				return err
			}
			return e.render(initramfsResult{"cfsboot.initramfs/1", output, *r})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "", "write to `FILE` instead of INITRD itself")
	f.StringVar(&program, "program", systemd.SetupRootProgram, "`FILE` of cfsboot-setup-root")
	f.StringVar(&config, "config", "", "initramfs.toml `FILE` to add")
	f.StringVar(&modules, "modules", "", "modules `DIR` of the initrd's kernel, to add erofs and overlay where the initrd lacks them")
	return cmd
}
