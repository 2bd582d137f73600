"""Whatever gives verdicts, loaded, asked and kept in one way."""
