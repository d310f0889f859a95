"""Objects with exact k-space, and scans of them: what the dataset generators and the tests reconstruct."""
