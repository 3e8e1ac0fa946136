// Package archtest holds the tests of the project's structure: which package may import which (imports.txt), that packages and
// exported names carry documentation, and that only the places meant for it print, exit or change files. It has no code of its own.
package archtest
