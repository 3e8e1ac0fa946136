package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// pullMakingRoom is pullImage, which compares what is missing with what is free
// before it fetches anything. Where the repository has no room it removes garbage
// and, if that is not enough, old deployments, as few as will do, and pulls again.
// If all of them would not do nothing is removed.
func (m *machine) pullMakingRoom(ctx context.Context, src oci.Source, reference string, o PullOptions) (*image, error) {
	for rounds := len(m.facts.State.Entries) + 2; ; rounds-- {
		img, err := m.pullImage(ctx, src, reference, o)
		var space *durable.SpaceError
		if !errors.As(err, &space) || space.Where != m.repo.Path() || rounds == 0 {
			return img, err
		}
		if err := m.makeObjectRoom(ctx, err, space); err != nil {
			return nil, err
		}
	}
}

// makeObjectRoom makes the bytes or inodes free that an error says are missing. If
// it cannot, the error wraps full.
func (m *machine) makeObjectRoom(ctx context.Context, full error, space *durable.SpaceError) error {
	opts, err := m.collectOptions(ctx)
	if err != nil {
		return errors.Join(full, err)
	}
	missing := max(1, space.Need-space.Have)
	amount := func(n int64) string { return progress.FormatSize(n, 1) }
	if space.Inodes {
		missing = max(1, space.NeedFiles-space.HaveFiles)
		amount = func(n int64) string { return progress.Count(int(n), "file") }
	}
	ids := retirable(m.facts, "")
	var frees int64
	for n := range len(ids) + 1 {
		dry := opts
		dry.DryRun, dry.Without = true, m.without(ids[:n])
		dry.Images = slices.DeleteFunc(slices.Clone(opts.Images), func(id string) bool { return slices.Contains(ids[:n], id) })
		c, err := m.repo.Collect(ctx, dry)
		if err != nil {
			return errors.Join(full, err)
		}
		if frees = c.Bytes; space.Inodes {
			frees = int64(c.Objects)
		}
		if frees < missing {
			continue
		}
		m.say("making room for %s in the repository", amount(missing))
		for _, id := range ids[:n] {
			if err := m.retire(ctx, id); err != nil {
				return errors.Join(full, err)
			}
		}
		if _, err := m.collect(ctx, false); err != nil {
			return errors.Join(full, err)
		}
		return nil
	}
	return fmt.Errorf("plan the repository (everything that may go, with %s, takes %s of the %s that are missing): %w", progress.Count(len(ids), "deployment"), amount(frees), amount(missing), full)
}

// without names the refs by which deployments hold what they need, and the tags
// that would go to another image with them.
func (m *machine) without(ids []string) []string {
	var out []string
	for _, id := range ids {
		out = append(out, "images/refs/"+refPrefix+id+"/", "streams/refs/"+refPrefix+id)
		if tag, ok := m.tagOf(id); ok {
			out = append(out, repo.Streams.String()+"/refs/"+oci.TagRef(tag))
		}
	}
	return out
}
