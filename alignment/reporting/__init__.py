"""What a finished run was, gathered from its files into sections of a page."""
