"""The infrastructure of every service, so that a pattern's folder contains only the pattern."""
