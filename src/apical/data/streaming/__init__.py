"""Images that are read and decoded while they are learned from: class folders, tar shards and parquet files."""
