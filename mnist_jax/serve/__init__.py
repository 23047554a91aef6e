"""Photos, the page to draw on, and exports."""
