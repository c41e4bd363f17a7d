"""Quality, log Z, sampling and speed, each against the peers: one file, one table."""
