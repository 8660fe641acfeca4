"""A run on disk and on its devices: directory, checkpoints, artefact, metrics, progress, hosts."""
