"""Files on disk: written whole or not at all, their formats, and the directory of a run."""
