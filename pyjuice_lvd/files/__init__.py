"""Files on disk: written whole or not at all; the directory of a run."""
