package deploy

// nextID is the deployment that the next boot starts, as far as the boot entries
// of this installation decide it: that of the first one in the menu, whatever the
// journal has armed last. "": that entry is not what was made, or there is none.
// What fails or goes does not count. A running deployment on its last try, which
// the menu shows last, is the default until it is known how that ends.
func (f Facts) nextID() string {
	newest := f.State.Newest()
	if !f.EntriesRead {
		if newest != nil {
			return newest.Deployment
		}
		return f.BootedID()
	}
	if newest != nil && newest.Deployment == f.BootedID() && f.whole(*newest) && f.EntryOf(newest.Seq).Name.Counter.Bad() {
		return newest.Deployment
	}
	for i := range f.Entries {
		e := &f.Entries[i]
		if !f.ours(*e) || fileOfTorn(e) != "" {
			continue
		}
		a := f.State.Entry(e.Name.Seq)
		switch {
		case a == nil:
			return e.ImageID()
		case a.Failed || a.Retiring:
			continue
		case isEntryOf(e, a.Deployment, a.BootDigest):
			return a.Deployment
		}
		return ""
	}
	return ""
}
