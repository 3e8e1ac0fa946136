package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/repo"
)

// HeldImages lists the images of r, in hex, that this machine needs whether a ref
// leads to them or not: what is mounted, what runs, and every deployment that the
// journal or a state directory beside the repository knows. top is the directory
// that holds the repository, root that of the running system. A journal that
// cannot be read is an error: then nobody knows what is needed.
func HeldImages(r *repo.Repository, top *durable.Dir, root string) ([]string, error) {
	var held []string
	add := func(id string) error {
		if !isID(id) || slices.Contains(held, id) {
			return nil
		}
		_, err := r.ResolveImage(id)
		var other *repo.AlgorithmError
		switch {
		case errors.Is(err, repo.ErrNotFound), errors.As(err, &other):
			return nil // there is nothing to keep
		case err != nil:
			return err
		}
		held = append(held, id)
		return nil
	}
	ids, err := deploymentIDs(top)
	if err != nil {
		return nil, err
	}
	running, err := runningIDs(Options{Root: root})
	if err != nil {
		return nil, err
	}
	for _, id := range append(ids, running...) {
		if err := add(id); err != nil {
			return nil, fmt.Errorf("image of deployment %s: %w", short(id), err)
		}
	}
	return held, nil
}

// deploymentIDs lists what journal and state directories know.
func deploymentIDs(top *durable.Dir) ([]string, error) {
	var ids []string
	j, err := bootlog.ReadJournal(top)
	switch {
	case err == nil:
		ids = j.State().Deployments()
	case !errors.Is(err, record.ErrNoJournal):
		return nil, fmt.Errorf("read journal: %w", err)
	}
	for _, parent := range []string{record.StateDir, stagedDir} {
		list, err := top.ReadSubDir(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, x := range list {
			ids = append(ids, x.Name)
		}
	}
	return ids, nil
}

// runningIDs lists what runs and what is mounted.
func runningIDs(o Options) ([]string, error) {
	var ids []string
	b, err := ReadBooted(o.Root)
	switch {
	case err == nil:
		ids = append(ids, b.Digest)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	text, err := os.ReadFile(o.path("/proc/self/mountinfo"))
	if errors.Is(err, fs.ErrNotExist) {
		return ids, nil
	}
	if err != nil {
		return nil, err
	}
	table, err := mnt.ParseTable(text)
	if err != nil {
		return nil, err
	}
	for _, m := range table {
		if id, ok := sourceID(m.Source); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// sourceID returns the image in the source of a composefs mount.
func sourceID(source string) (string, bool) {
	id, ok := strings.CutPrefix(source, "composefs:")
	if !ok {
		id, ok = strings.CutPrefix(source, "transient:composefs=")
	}
	return id, ok
}
