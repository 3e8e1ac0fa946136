// Package vm holds the scenarios: tests that install, boot, upgrade, kill and
// tamper with whole machines. They run with CFSBOOT_VM_TESTS=1 after
// "go run ./tests/vm/cmd/lab setup"; docs/lab.md describes the lab.
package vm
