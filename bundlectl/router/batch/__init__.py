"""Batches: taken in, kept, worked on row by row, and given back in order; in a local journal, or over SQS and S3."""
