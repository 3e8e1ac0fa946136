package systemd

// AppendInitrdAt is AppendInitrdFile on a directory that a test gave faults.
var AppendInitrdAt = appendInitrdAt
