"""DICOM networking in: the listener and its statuses. With destinations.py the only room that speaks pynetdicom."""
