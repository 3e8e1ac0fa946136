// Package disk makes a disk that can be installed to: it finds out what is on it
// and who uses it ([Prober]), decides how it is divided ([MakePlan], which is
// pure), and runs the programs that do it ([Plan.Divide]). docs/design/install.md
// is normative.
//
// What sfdisk, wipefs and mkfs write does not go through package durable: a disk
// counts as incomplete from their first write until [Plan.Complete].
package disk
