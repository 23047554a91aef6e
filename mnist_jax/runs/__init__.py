"""What a run leaves on disk, and the way back."""
