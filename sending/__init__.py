"""The client's side: a file is sent, at the scan's pace if asked for, and the images that come back are kept."""
