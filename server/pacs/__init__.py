"""PACS-lite: DICOM in, as Study / Series / Image; seen, and forwarded. One door in: `ingest`."""
