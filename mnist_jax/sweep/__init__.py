"""Many configurations, compared on held-out images."""
