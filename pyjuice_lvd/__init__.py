"""Tractable density models of images: probabilistic circuits by latent variable distillation."""
