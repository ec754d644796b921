"""The published JSON Schema, and what it finds, in our words."""
