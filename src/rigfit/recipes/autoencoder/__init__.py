"""Tiles through a short latent vector and back."""
