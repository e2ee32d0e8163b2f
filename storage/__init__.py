"""Keeps bytes (`blobs`) and facts (tables). Knows no HTTP, no tus and no DICOM."""
