package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// pullResult is what `oci pull` prints.
type pullResult struct {
	Schema         string        `json:"schema"` // cfsboot.oci-pull/1
	Name           string        `json:"name"`
	Reference      string        `json:"reference"`
	ManifestDigest digest.Digest `json:"manifest_digest"`
	ConfigDigest   digest.Digest `json:"config_digest"`
	IndexDigest    digest.Digest `json:"index_digest"`
	Plain          string        `json:"composefs_erofs"`
	Boot           string        `json:"composefs_boot_erofs"`
	Stats          pull.Stats    `json:"stats"`
	Warnings       []string      `json:"warnings"` // never null
}

func (r pullResult) warnings() []string { return r.Warnings }

func (r pullResult) table(p *page) {
	p.line("name      %s", r.Name)
	p.line("manifest  %s", r.ManifestDigest)
	p.line("config    %s", r.ConfigDigest)
	p.line("plain     %s", r.Plain)
	if r.Boot != "" {
		p.line("boot      %s", r.Boot)
	}
	p.line("layers    %d fetched, %d already there", r.Stats.LayersFetched, r.Stats.LayersPresent)
	p.line("objects   %s", r.Stats)
}

func newPullCommand(e *env) *cobra.Command {
	var bootable bool
	var src sourceFlags
	cmd := &cobra.Command{
		Use:   "pull SOURCE NAME",
		Short: "Bring an image into the repository and tag it NAME",
		Long: `Bring an image into the repository and tag it NAME. SOURCE is docker://HOST/NAME:TAG, the same
without docker://, or oci:DIR[:TAG] for an OCI layout. Every blob is checked against its digest and
every layer against its diff ID before anything gets a name; layers that are there are not fetched.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oci.CheckTag(args[1]); err != nil {
				return usageErrorf(cmd, "NAME: %w", err)
			}
			from, err := src.options(cmd, e)
			if err != nil {
				return err
			}
			return e.withRepo(cmd.Context(), func(r *repo.Repository) error {
				res, err := e.pull(cmd.Context(), r, from, args[0], args[1], bootable)
				if err != nil {
					return err
				}
				return e.render(*res)
			})
		},
	}
	cmd.Flags().BoolVar(&bootable, "bootable", false, "make the boot image too: /boot and /sysroot emptied")
	src.bind(cmd)
	return cmd
}

// pull brings one image into the repository. A bootable one that could not be deployed is no failure: the repository may be read
// by something else. It is a warning.
func (e *env) pull(ctx context.Context, r *repo.Repository, from deploy.PullOptions, ref, name string, bootable bool) (_ *pullResult, err error) {
	source, err := from.OpenSource(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	res, err := pull.Pull(ctx, r, source, pull.Options{
		Name: name, Bootable: bootable, Policy: keyring.Computed{}, Platform: from.Platform, Progress: e.reporter(), Logger: e.logger,
	})
	if err != nil {
		return nil, err
	}
	plain, _ := res.Verified.Digest(keyring.Plain)
	boot, _ := res.Verified.Digest(keyring.Boot)
	out := &pullResult{
		"cfsboot.oci-pull/1", name, ref, res.ManifestDigest, res.ConfigDigest, res.IndexDigest, plain.Hex(), boot.Hex(), res.Stats, []string{},
	}
	if bootable {
		err := deploy.CheckBootable(ctx, r, plain)
		var refused *deploy.RefusedError
		if err != nil && !errors.As(err, &refused) {
			return nil, err
		}
		if err != nil {
			out.Warnings = append(out.Warnings, oneLine(err))
		}
	}
	return out, nil
}

// imagesResult is what `oci images` prints; its JSON is cfsctl's with more keys.
type imagesResult struct {
	Schema   string         `json:"schema"` // cfsboot.oci-images/1
	Images   []oci.Summary  `json:"images"`
	Problems []imageProblem `json:"problems"`
}

type imageProblem struct {
	Name    string `json:"name"`
	Message string `json:"message"`
}

func (r imagesResult) table(p *page) {
	rows := [][]string{{"NAME", "MANIFEST", "ARCH", "LAYERS", "VERSION", "PLAIN", "BOOT"}}
	for _, s := range r.Images {
		rows = append(rows, []string{s.Name, short(s.ManifestDigest.String()), s.Architecture, strconv.Itoa(s.LayerCount), s.Version, short(s.Plain), short(s.Boot)})
	}
	p.columns(rows...)
	for _, x := range r.Problems {
		p.line("cannot read %s: %s", x.Name, x.Message)
	}
}

func newImagesCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "images",
		Short: "List the tagged images of the repository",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withRepo(cmd.Context(), func(r *repo.Repository) error {
				list, problems, err := oci.Images(cmd.Context(), r)
				if err != nil {
					return err
				}
				res := imagesResult{"cfsboot.oci-images/1", list, []imageProblem{}}
				for _, p := range problems {
					res.Problems = append(res.Problems, imageProblem{p.Name, p.Err.Error()})
				}
				return e.render(res)
			})
		},
	}
}

// inspectResult is what `oci inspect` prints.
type inspectResult struct{ *oci.Inspection }

func (r inspectResult) table(p *page) {
	p.line("name          %s", r.Name)
	p.line("manifest      %s", r.ManifestDigest)
	p.line("config        %s", r.ConfigDigest)
	p.line("platform      %s/%s", r.OS, r.Architecture)
	for _, line := range [][2]string{{"created", r.Created}, {"version", r.Version}} {
		if line[1] != "" {
			p.line("%-13s %s", line[0], line[1])
		}
	}
	if r.Plain != nil {
		p.line("plain         %s", r.Plain.Hex())
	}
	if r.Boot != nil {
		p.line("boot          %s", r.Boot.Hex())
	}
	rows := [][]string{{"LAYER", "DIFF ID", "SIZE", "VERIFIED"}}
	for _, l := range r.Layers {
		rows = append(rows, []string{short(l.Digest.String()), short(l.DiffID.String()), progress.FormatBytes(l.Size), strconv.FormatBool(l.Verified)})
	}
	p.columns(rows...)
}

func newInspectCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show one image: its digests, image IDs and layers",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withRepo(cmd.Context(), func(r *repo.Repository) error {
				in, err := oci.Inspect(cmd.Context(), r, args[0])
				if err != nil {
					return err
				}
				return e.render(inspectResult{in})
			})
		},
	}
}

// mountResult is what `oci mount` prints.
type mountResult struct {
	Schema     string `json:"schema"` // cfsboot.oci-mount/1
	Name       string `json:"name"`
	ImageID    string `json:"image_id"`
	MountPoint string `json:"mount_point"`
	Verity     bool   `json:"verity"` // the kernel checks every file that is read
}

func (r mountResult) table(p *page) {
	state := "every read is checked by fs-verity"
	if !r.Verity {
		state = "objects are NOT checked: the repository is insecure"
	}
	p.line("%s mounted at %s (%s): %s", r.Name, r.MountPoint, short(r.ImageID), state)
}

func newMountCommand(e *env) *cobra.Command {
	var bootable bool
	cmd := &cobra.Command{
		Use:   "mount NAME DIR",
		Short: "Mount an image read-only on a directory",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if st, err := os.Stat(args[1]); err != nil {
				return fmt.Errorf("DIR: %w", err)
			} else if !st.IsDir() {
				return fmt.Errorf("DIR: %q is not a directory", args[1])
			}
			return e.withRepo(cmd.Context(), func(r *repo.Repository) error {
				in, err := oci.Inspect(cmd.Context(), r, args[0])
				if err != nil {
					return err
				}
				id := in.Plain
				if bootable {
					id = in.Boot
				}
				if id == nil {
					return fmt.Errorf("image %q has no such EROFS image in the format of the repository; pull it again (with --bootable for its boot image)", args[0])
				}
				image, err := r.OpenImage(cmd.Context(), *id)
				if err != nil {
					return err
				}
				defer image.Close()
				objects, err := r.Dir().Sub("objects")
				if err != nil {
					return err
				}
				defer objects.Close() //nolint:errcheck // nothing was written
				if err := mnt.Composefs(image, objects.File(), args[1], mnt.ComposefsOptions{Source: "composefs:" + id.Hex(), Verity: r.Secure()}); err != nil {
					return err
				}
				return e.render(mountResult{"cfsboot.oci-mount/1", args[0], id.Hex(), args[1], r.Secure()})
			})
		},
	}
	cmd.Flags().BoolVar(&bootable, "bootable", false, "mount the boot image instead of the plain one")
	return cmd
}
