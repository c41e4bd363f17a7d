"""One file, one dataclass, one run, one table in results/."""
