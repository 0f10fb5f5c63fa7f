"""Read and tell: what a checkpoint holds, what differs, what it costs. Nothing is written."""
