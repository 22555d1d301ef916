"""Stand-ins for development and tests: none of this ships."""
