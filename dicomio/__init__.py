"""What dicom2mrd.py and mrd2dicom.py share: DICOM objects as frames, their geometry, and what survives the way back."""
