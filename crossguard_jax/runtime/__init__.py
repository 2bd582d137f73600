"""Where a run runs: slices of chips, launchers, and the codes that it ends with."""
