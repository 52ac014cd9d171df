"""What a node keeps on disk: LevelDB chain, model blobs and the signer's write-ahead log."""
