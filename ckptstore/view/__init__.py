"""Facts into tables, text and plain objects. Nothing here reads, writes or prints."""
