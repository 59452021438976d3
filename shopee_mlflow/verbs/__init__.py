"""The commands, one per file; each main function shows the job from start to end."""
