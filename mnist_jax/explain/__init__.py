"""Figures that explain a trained network."""
