"""Files: frames read, frames and tables written, masters, accounting."""
