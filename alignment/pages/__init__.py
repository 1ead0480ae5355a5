"""Pages that open anywhere: one HTML file with all it needs, in which foreign text is text."""
