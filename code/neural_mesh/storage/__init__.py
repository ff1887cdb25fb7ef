"""Files: how everything that passes between stages is read and written."""
