"""Where bytes lie: the BlobStore seam and its backends."""
