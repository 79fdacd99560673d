"""Other ways to serve the same pipeline, beside ditcast in one run."""
