"""Task families: built-in ones by name in `registry`, those of other libraries through `adapters`."""
