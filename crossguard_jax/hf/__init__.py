"""Hub folders in and out: configs, one bidirectional name table, streamed loading, export."""
