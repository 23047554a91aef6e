"""Predictions for photos, a web page to draw on, and exports."""
