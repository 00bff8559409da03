"""Container images over containerd and CRI: pull, prove, watch."""
