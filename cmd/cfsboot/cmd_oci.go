package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

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
}

func (r pullResult) table(w io.Writer) {
	fmt.Fprintf(w, "name      %s\nmanifest  %s\nconfig    %s\nplain     %s\n", r.Name, r.ManifestDigest, r.ConfigDigest, r.Plain)
	if r.Boot != "" {
		fmt.Fprintf(w, "boot      %s\n", r.Boot)
	}
	s := r.Stats
	fmt.Fprintf(w, "layers    %d fetched, %d already there\nobjects   %s\n", s.LayersFetched, s.LayersPresent, s)
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
			return e.withRepo(cmd.Context(), func(r *repo.Repository) (err error) {
				source, err := src.open(e)(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, source.Close()) }()
				res, err := pull.Pull(cmd.Context(), r, source, pull.Options{
					Name: args[1], Bootable: bootable, Policy: keyring.Computed{}, Progress: e.reporter(), Logger: e.logger,
				})
				if err != nil {
					return err
				}
				plain, _ := res.Verified.Digest(keyring.Plain)
				boot, _ := res.Verified.Digest(keyring.Boot)
				return e.render(pullResult{
					"cfsboot.oci-pull/1", args[1], args[0], res.ManifestDigest, res.ConfigDigest, res.IndexDigest, plain.Hex(), boot.Hex(), res.Stats,
				})
			})
		},
	}
	cmd.Flags().BoolVar(&bootable, "bootable", false, "make the boot image too: /boot and /sysroot emptied")
	src.bind(cmd)
	return cmd
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

func (r imagesResult) table(w io.Writer) {
	rows := [][]string{{"NAME", "MANIFEST", "ARCH", "LAYERS", "VERSION", "PLAIN", "BOOT"}}
	for _, s := range r.Images {
		rows = append(rows, []string{s.Name, short(s.ManifestDigest.String()), s.Architecture, strconv.Itoa(s.LayerCount), s.Version, short(s.Plain), short(s.Boot)})
	}
	columns(w, rows...)
	for _, p := range r.Problems {
		fmt.Fprintf(w, "cannot read %s: %s\n", p.Name, p.Message)
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

func (r inspectResult) table(w io.Writer) {
	fmt.Fprintf(w, "name          %s\nmanifest      %s\nconfig        %s\nplatform      %s/%s\n", r.Name, r.ManifestDigest, r.ConfigDigest, r.OS, r.Architecture)
	for _, line := range [][2]string{{"created", r.Created}, {"version", r.Version}} {
		if line[1] != "" {
			fmt.Fprintf(w, "%-13s %s\n", line[0], line[1])
		}
	}
	if r.Plain != nil {
		fmt.Fprintf(w, "plain         %s\n", r.Plain.Hex())
	}
	if r.Boot != nil {
		fmt.Fprintf(w, "boot          %s\n", r.Boot.Hex())
	}
	rows := [][]string{{"LAYER", "DIFF ID", "SIZE", "VERIFIED"}}
	for _, l := range r.Layers {
		rows = append(rows, []string{short(l.Digest.String()), short(l.DiffID.String()), progress.FormatBytes(l.Size), strconv.FormatBool(l.Verified)})
	}
	columns(w, rows...)
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

func (r mountResult) table(w io.Writer) {
	state := "every read is checked by fs-verity"
	if !r.Verity {
		state = "objects are NOT checked: the repository is insecure"
	}
	fmt.Fprintf(w, "%s mounted at %s (%s): %s\n", r.Name, r.MountPoint, short(r.ImageID), state)
}

func newMountCommand(e *env) *cobra.Command {
	var bootable bool
	cmd := &cobra.Command{
		Use:   "mount NAME DIR",
		Short: "Mount an image read-only on a directory",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
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
				defer objects.Close()
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
