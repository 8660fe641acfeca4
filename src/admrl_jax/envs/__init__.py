"""Task families: by name in `registry`, of other makers in `adapters`."""
