"""Model weights from S3 to local disk: manifest, download, store."""
