"""Tables of docs/ that are written from configs and results."""
