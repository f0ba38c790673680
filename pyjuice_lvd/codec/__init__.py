"""Lossless coding with a model's exact conditionals (docs/compression.md): files, streams, and what joins them."""
