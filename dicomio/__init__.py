"""Shared by dicom2mrd.py and mrd2dicom.py: DICOM objects as frames, their geometry, and attributes for the way back."""
