"""Files and streams: durable JSON lines, pictures from untrusted bytes, progress on stderr."""
