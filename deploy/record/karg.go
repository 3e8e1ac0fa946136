package record

// Sources of kernel arguments.
const (
	KargCfsboot = "cfsboot" // selects and mounts the root; written by cfsboot
	KargImage   = "image"   // a file of the image
	KargInstall = "install" // given to the installation
	KargLocal   = "local"   // written into the boot entry by hand
	KargSite    = "site"    // a file of the site, below /etc
)

// Karg is one kernel argument and where it comes from.
type Karg struct {
	Argument string `json:"argument"` // one token of the command line, quotes included
	Source   string `json:"source"`   // one of the Karg constants
	File     string `json:"file"`     // absolute, in the running system; "" if it comes from no file
}
